"""A model whose replies are kept by the execution that asks for them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from tripod.chat.wrappers import Around
from tripod.flows.effects import Effect
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import Event, unfolded


@dataclass(frozen=True, slots=True)
class Journalled(Around):
    """A ChatModel for `@durable` functions: each reply is journalled, and when the execution is resumed nobody is asked again.

    Outside of an execution it is the model inside. In one a stream comes when it is whole.
    """

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        ask: Effect[[Prompt, SamplingParams], Reply] = Effect(self._ask, "model", repeatable=True)
        return await ask(prompt, sampling)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        for event in unfolded(await self.complete(prompt, sampling)):
            yield event

    async def _ask(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await self.inner.complete(prompt, sampling)
