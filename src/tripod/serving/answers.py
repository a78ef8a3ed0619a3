"""Sending an answer, whole or in chunks. Both come from the same pieces, so a stream adds up to the whole by construction."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.wire.openai_replies import ErrorBody, Made
from tripod.messages import Usage
from tripod.serving.apps import App
from tripod.serving.connection import EventStream, unless_disconnected
from tripod.serving.errors import error_body
from tripod.serving.generation import Arrival, Choice, Source, generate, total_usage
from tripod.serving.visit import Visit
from tripod.trace import Event, Finished

Body = dict[str, Any]


class Writer(Protocol):
    """Turns events into the bodies of one endpoint."""

    def chunk(self, choice: Choice, event: Event, made: Made | None) -> bytes | None: ...  # the next frame; None: nothing to send yet

    def end(self, usage: Usage) -> bytes: ...  # the last frames of a stream

    def failed(self, error: ErrorBody) -> bytes: ...  # the last frame of one that cannot be finished

    def take(self, choice: Choice, event: Event) -> None: ...  # as `chunk`, for the whole

    def whole(self, usage: Usage, made: Made) -> Body: ...  # all pieces so far, as one body


async def respond(
    request: Request,
    source: Source,
    choices: Sequence[Choice],
    writer: Writer,
    *,
    num_choices: int,
    stream: bool,
) -> Response:
    """Runs the choices and answers. `num_choices` is how many belong to one prompt."""
    visit = Visit.of(request)
    account = _Account(visit, source, len(choices), num_choices)

    async def whole() -> Response:
        async with aclosing(generate(source, choices, visit)) as events:
            async for arrived in events:
                for choice, event in arrived:
                    writer.take(choice, event)
                    account.note(choice, event)
                    visit.sent(choice.index, event)
        return JSONResponse(writer.whole(account.usage, account.made))

    async def streamed() -> Response:
        events = generate(source, choices, visit)
        # The status is sent with the first event, so what is refused before any work gets a status of its own.
        first = await anext(events)
        frames = _frames(first, events, writer, account)
        return EventStream(frames, send_timeout_s=visit.served.config.send_timeout_s)

    return await unless_disconnected(request, streamed if stream else whole)


class _Account:
    """What an HTTP request cost, summed over its choices."""

    def __init__(self, visit: Visit, source: Source, num_open: int, num_choices: int) -> None:
        self.visit = visit
        self._source = source
        self._num_open = num_open
        self._num_choices = num_choices
        self._finished: dict[int, Finished] = {}

    def note(self, choice: Choice, event: Event) -> bool:
        """Whether this was the last event of all."""
        if isinstance(event, Finished):
            self._finished[choice.index] = event
            if len(self._finished) == self._num_open:
                self._describe()
                return True
        return False

    @property
    def _in_order(self) -> list[Finished]:
        return [self._finished[index] for index in sorted(self._finished)]

    @property
    def usage(self) -> Usage:
        return total_usage(self._in_order, self._num_choices)

    @property
    def made(self) -> Made:
        finished = self._in_order
        return Made(
            queue_s=max(event.timings.queue_s for event in finished),
            prefill_s=max(event.timings.prefill_s for event in finished),
            decode_s=max(event.timings.decode_s for event in finished),
            tokenize_s=self.visit.tokenize_s,
            total_s=time.monotonic() - self.visit.arrived_s,
            cached_tokens=self.usage.cached_tokens,
            cache_miss=next((event.cache_miss for event in finished if event.cache_miss is not None), None),
            step_ids=sorted({step_id for event in finished for step_id in event.step_ids}),
            batch_invariant=not isinstance(self._source, App) and self._source.config.batch_invariant,
        )

    def _describe(self) -> None:
        self.visit.attributes |= {
            "gen_ai.response.model": self._source.name,
            "gen_ai.usage.input_tokens": self.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": self.usage.completion_tokens,
            "gen_ai.response.finish_reasons": ",".join(event.finish_reason for event in self._in_order),
        }


async def _frames(
    first: list[Arrival], rest: AsyncGenerator[list[Arrival], None], writer: Writer, account: _Account
) -> AsyncGenerator[bytes, None]:
    """The stream of one response: frames, together where several are due. After a `yield` they have been handed to the socket."""
    visit = account.visit
    async with aclosing(rest):
        try:
            async for arrived in _chained(first, rest):
                frames = []
                for choice, event in arrived:
                    made = account.made if account.note(choice, event) else None
                    chunk = writer.chunk(choice, event, made)
                    if chunk is not None:
                        frames.append(chunk)
                if frames:
                    yield b"".join(frames)
                for choice, event in arrived:
                    visit.sent(choice.index, event)
        except Exception as error:
            visit.error = error
            yield writer.failed(error_body(error))  # and no [DONE]: the answer is not complete
            return
    yield writer.end(account.usage)


async def _chained(first: list[Arrival], rest: AsyncGenerator[list[Arrival], None]) -> AsyncGenerator[list[Arrival], None]:
    yield first
    async for arrived in rest:
        yield arrived
