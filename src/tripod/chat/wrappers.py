"""ChatModels around a ChatModel. A stream is retried or replaced only while nothing of it has been shown."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import anyio

from tripod.chat.closing import closing
from tripod.errors import ConfigError, EngineError, ModelTimeoutError, OverloadedError
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.trace import Event


@dataclass(frozen=True, slots=True)
class Retrying:
    """A ChatModel that asks again, after the wait it was told, when the one inside is overloaded."""

    inner: ChatModel
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts={self.attempts} asks nobody; give at least 1")

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar."""
        return bool(getattr(self.inner, "constrains", False))

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        for _ in range(self.attempts - 1):
            try:
                return await self.inner.complete(prompt, sampling)
            except OverloadedError as error:
                await anyio.sleep(error.retry_after_s)
        return await self.inner.complete(prompt, sampling)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        for attempt in range(1, self.attempts + 1):
            has_begun = False
            try:
                async with closing(self.inner.stream(prompt, sampling)) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except OverloadedError as error:
                if has_begun or attempt == self.attempts:
                    raise
                await anyio.sleep(error.retry_after_s)


@dataclass(frozen=True, slots=True)
class Fallback:
    """A ChatModel that asks the next model when one fails, is overloaded or takes too long. A bad request is bad everywhere: it rises."""

    models: tuple[ChatModel, ...]

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("a Fallback without models cannot answer; give at least one")

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar."""
        return all(getattr(model, "constrains", False) for model in self.models)

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        for model in self.models[:-1]:
            try:
                return await model.complete(prompt, sampling)
            except _REPLACEABLE:
                continue
        return await self.models[-1].complete(prompt, sampling)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        for place, model in enumerate(self.models, start=1):
            has_begun = False
            try:
                async with closing(model.stream(prompt, sampling)) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except _REPLACEABLE:
                if has_begun or place == len(self.models):
                    raise


_REPLACEABLE = (EngineError, OverloadedError, ModelTimeoutError)


@dataclass(frozen=True, slots=True)
class Timeout:
    """A ChatModel that gives up after `seconds` of waiting for the one inside. The time its reader takes does not count."""

    inner: ChatModel
    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigError(f"seconds={self.seconds!r} leaves no time to answer; give a number above 0")

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar."""
        return bool(getattr(self.inner, "constrains", False))

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        try:
            with anyio.fail_after(self.seconds):
                return await self.inner.complete(prompt, sampling)
        except TimeoutError as error:
            raise self._error() from error

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        left_s = self.seconds
        async with closing(self.inner.stream(prompt, sampling)) as events:
            while True:
                start_s = time.monotonic()
                try:
                    with anyio.fail_after(left_s):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise self._error() from error
                left_s = max(0.0, left_s - (time.monotonic() - start_s))
                yield event

    def _error(self) -> ModelTimeoutError:
        return ModelTimeoutError(f"the model did not answer within {self.seconds:g} s; give it more time, or ask for fewer tokens")
