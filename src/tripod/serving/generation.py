"""One HTTP request may ask for several answers (`n`, several prompts): they run side by side and arrive as one stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from tripod.chat.closing import closing
from tripod.errors import EngineError
from tripod.messages import Usage
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.serving.apps import App
from tripod.serving.errors import SlowReaderError
from tripod.trace import Event, Finished

if TYPE_CHECKING:
    from tripod.engine.engine import Engine
    from tripod.serving.visit import Visit


def _as_it_is(events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    return events


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer to produce. `index` is its place in the response."""

    index: int
    prompt: tuple[int, ...] | Prompt  # token ids for an engine, messages for an app
    sampling: SamplingParams
    read: Callable[[AsyncIterator[Event]], AsyncIterator[Event]] = _as_it_is  # finds reasoning and calls in what comes


def choices_of(
    prompts: Sequence[Sequence[int] | Prompt],
    sampling: SamplingParams,
    num_choices: int,
    *,
    read: Callable[[AsyncIterator[Event]], AsyncIterator[Event]] = _as_it_is,
) -> list[Choice]:
    """`num_choices` answers to each prompt, in the order of the API. Answers to one prompt draw from seed, seed + 1, ..."""
    return [
        Choice(
            index=i * num_choices + j,
            prompt=prompt if isinstance(prompt, Prompt) else tuple(prompt),
            sampling=_with_seed(sampling, j),
            read=read,
        )
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


Arrival: TypeAlias = tuple[Choice, Event]
Source: TypeAlias = "Engine | App"  # who answers


def _stream(source: Source, choice: Choice, visit: Visit, timeout_s: float | None) -> AsyncIterator[Event]:
    if isinstance(choice.prompt, Prompt):
        assert isinstance(source, App)
        return source.stream(choice.prompt, choice.sampling)
    assert not isinstance(source, App)
    return source.stream(choice.prompt, choice.sampling, priority=visit.priority, tenant=visit.tenant, timeout_s=timeout_s)


async def generate(source: Source, choices: Sequence[Choice], visit: Visit) -> AsyncGenerator[list[Arrival], None]:
    """The events of all choices as they come, those together that came while the last were taken.

    Closing it aborts what still runs; the first error ends all.

    Raises:
        RequestError: the engine refuses a choice.
        DeadlineError: the request's own time is over.
        ShuttingDownError: the server cannot wait for it any longer.
        SlowReaderError: nobody takes the events.
        EngineError: the engine fails, or is told to abort a choice.
    """
    served = visit.served
    visit.meter = served.metrics.meter(len(choices), visit.arrived_s)
    timeout_s = visit.remaining_s
    if timeout_s is not None and timeout_s <= 0.0:
        raise visit.deadline_error()
    streams = [  # all are checked before one is begun
        choice.read(_stream(source, choice, visit, timeout_s)) for choice in choices
    ]
    arrivals: asyncio.Queue[Arrival | Exception] = asyncio.Queue()
    asked_s = time.monotonic()

    async def pump(choice: Choice, stream: AsyncIterator[Event]) -> None:
        has_begun = False
        try:
            async with closing(stream) as events:
                async for event in events:
                    if (
                        not has_begun
                        and visit.ticket is not None
                        and (isinstance(event, Finished) or event.token_ids or isinstance(source, App))
                    ):
                        has_begun = True
                        served.admission.start(visit.ticket)
                    arrivals.put_nowait((choice, event))
                    if arrivals.qsize() > served.config.max_unread_events:
                        raise SlowReaderError(f"{arrivals.qsize()} events wait for a client that does not take them")
        except Exception as error:
            arrivals.put_nowait(error)

    with served.lifecycle.told_of_cut(arrivals.put_nowait):
        tasks = [asyncio.create_task(pump(choice, stream)) for choice, stream in zip(choices, streams, strict=True)]
        alarm = (
            asyncio.get_running_loop().call_later(timeout_s, lambda: arrivals.put_nowait(visit.deadline_error()))
            if timeout_s is not None  # the engine keeps it between steps; here it holds even when a step hangs
            else None
        )
        try:
            num_running = len(choices)
            while num_running:
                arrived: list[Arrival] = []
                arrival = await arrivals.get()
                while not isinstance(arrival, Exception):
                    event = arrival[1]
                    if isinstance(event, Finished):
                        if event.finish_reason == "abort":
                            arrival = EngineError("the engine aborted this request before it was finished")
                            break
                        visit.span.phases(event, asked_s)
                        num_running -= 1
                    arrived.append(arrival)
                    if arrivals.empty():
                        break
                    arrival = arrivals.get_nowait()
                if arrived:
                    yield arrived
                if isinstance(arrival, Exception):
                    raise arrival
        finally:
            if alarm is not None:
                alarm.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
