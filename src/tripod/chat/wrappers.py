"""ChatModels around a ChatModel. A stream is retried or replaced only while nothing of it has been shown."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

import anyio

from tripod.chat.closing import closing
from tripod.errors import ConfigError, EngineError, ModelTimeoutError, OverloadedError
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.trace import Event, Finished, unfolded


@dataclass(frozen=True, slots=True)
class Around:
    """What ChatModels around one have in common."""

    inner: ChatModel

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar."""
        return bool(getattr(self.inner, "constrains", False))


@dataclass(frozen=True, slots=True)
class Retrying(Around):
    """A ChatModel that asks again, after the wait it was told, when the one inside is overloaded."""

    attempts: int = 3

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts={self.attempts} asks nobody; give at least 1")

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
class Timeout(Around):
    """A ChatModel that gives up after `seconds` of waiting for the one inside. The time its reader takes does not count."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigError(f"seconds={self.seconds!r} leaves no time to answer; give a number above 0")

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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RateLimited(Around):
    """A ChatModel that begins at most `requests` requests in any `per_s` seconds; the others wait, in the order in which they came."""

    requests: int
    per_s: float = 60.0
    _starts: deque[float] = field(default_factory=deque, init=False)  # of the last requests
    _waiting: anyio.Lock = field(default_factory=anyio.Lock, init=False)

    def __post_init__(self) -> None:
        if self.requests < 1 or not self.per_s > 0:
            raise ConfigError(f"requests={self.requests} in per_s={self.per_s} lets nobody ask; give at least 1, and a time above 0")

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        await self._turn()
        return await self.inner.complete(prompt, sampling)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        await self._turn()
        async with closing(self.inner.stream(prompt, sampling)) as events:
            async for event in events:
                yield event

    async def _turn(self) -> None:
        async with self._waiting:  # one after the other; who gives up leaves no place taken
            if len(self._starts) == self.requests:
                await anyio.sleep(max(0.0, self._starts[0] + self.per_s - anyio.current_time()))
                self._starts.popleft()
            self._starts.append(anyio.current_time())


def is_confident(reply: Reply) -> bool:
    """Whether its tokens had a probability of at least 0.8, in the geometric mean. Without log-probabilities it is not known, so: no."""
    return bool(reply.logprobs) and sum(entry.logprob for entry in reply.logprobs) / len(reply.logprobs) >= math.log(0.8)


@dataclass(frozen=True, slots=True)
class Cascade:
    """A ChatModel that asks a small model first, and a large one where the small one is unsure. The usage is that of both.

    A stream begins when it is known whose answer it is.

    Args:
        is_sure: decides on the small model's reply, which has log-probabilities where the model can give them.
    """

    small: ChatModel
    large: ChatModel
    is_sure: Callable[[Reply], bool] = is_confident

    @property
    def constrains(self) -> bool:
        """Whether an answer can be held to a grammar."""
        return all(getattr(model, "constrains", False) for model in (self.small, self.large))

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        reply, is_sure = await self._first(prompt, sampling)
        if is_sure:
            return reply
        second = await self.large.complete(prompt, sampling)
        return replace(second, usage=reply.usage + second.usage)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        reply, is_sure = await self._first(prompt, sampling)
        if is_sure:
            for event in unfolded(reply):
                yield event
            return
        async with closing(self.large.stream(prompt, sampling)) as events:
            async for event in events:
                yield replace(event, usage=reply.usage + event.usage) if isinstance(event, Finished) else event

    async def _first(self, prompt: Prompt, sampling: SamplingParams) -> tuple[Reply, bool]:
        asked = sampling if sampling.logprobs is not None else replace(sampling, logprobs=0)
        reply = await self.small.complete(prompt, asked)
        is_sure = self.is_sure(reply)
        return (reply if sampling.logprobs is not None else replace(reply, logprobs=())), is_sure
