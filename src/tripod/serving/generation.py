"""One HTTP request may ask for several answers (`n`, several prompts): they run side by side and arrive as one stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tripod.errors import EngineError, RequestError
from tripod.messages import Usage
from tripod.sampling import SamplingParams
from tripod.serving.metrics import Metrics
from tripod.trace import Event, Finished

if TYPE_CHECKING:
    from tripod.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer to produce. `index` is its place in the response."""

    index: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams


def choices_of(prompts: Sequence[Sequence[int]], sampling: SamplingParams, num_choices: int) -> list[Choice]:
    """`num_choices` answers to each prompt, in the order of the API. Answers to one prompt draw from seed, seed + 1, ..."""
    return [
        Choice(index=i * num_choices + j, prompt_ids=tuple(prompt), sampling=_with_seed(sampling, j))
        for i, prompt in enumerate(prompts)
        for j in range(num_choices)
    ]


def _with_seed(sampling: SamplingParams, offset: int) -> SamplingParams:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + offset)


def total_usage(finished: Sequence[Finished], num_choices: int) -> Usage:
    """The prompt counts once for all of its choices, as in the OpenAI API. `finished` is in the order of the choices."""
    return Usage(
        prompt_tokens=sum(event.usage.prompt_tokens for event in finished[::num_choices]),
        completion_tokens=sum(event.usage.completion_tokens for event in finished),
        cached_tokens=sum(event.usage.cached_tokens for event in finished[::num_choices]),
    )


async def generate(engine: Engine, choices: Sequence[Choice], metrics: Metrics) -> AsyncGenerator[tuple[Choice, Event], None]:
    """The events of all choices as they come. Closing it aborts what still runs; the first error ends all.

    Raises:
        RequestError: the engine refuses a choice.
        EngineError: it fails, or is told to abort one.
    """
    arrived_s = time.monotonic()
    arrivals: asyncio.Queue[tuple[Choice, Event | Exception]] = asyncio.Queue()

    async def pump(choice: Choice, stream: AsyncIterator[Event]) -> None:
        try:
            async with aclosing(metrics.watch(stream, arrived_s)) as events:
                async for event in events:
                    arrivals.put_nowait((choice, event))
        except Exception as error:
            arrivals.put_nowait((choice, error))

    try:
        if len(choices) > engine.config.max_num_waiting:  # asking again later would not help
            raise RequestError(
                f"{len(choices)} choices in one request are more than this server queues, {engine.config.max_num_waiting}; "
                "send fewer prompts at a time, or a smaller n",
                param="n",
            )
        streams = [engine.stream(choice.prompt_ids, choice.sampling) for choice in choices]  # all are checked before one is begun
    except RequestError:
        metrics.refused(len(choices))
        raise
    tasks = [asyncio.create_task(pump(choice, stream)) for choice, stream in zip(choices, streams, strict=True)]
    try:
        num_running = len(choices)
        while num_running:
            choice, event = await arrivals.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Finished):
                if event.finish_reason == "abort":
                    raise EngineError("the engine aborted this request before it was finished")
                num_running -= 1
            yield choice, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
