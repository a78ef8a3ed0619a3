"""Sending an answer, whole or in chunks. Both come from the same pieces, so a stream adds up to the whole by construction."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.wire.sse import DONE, frame
from tripod.messages import Usage
from tripod.serving.connection import EventStream, unless_disconnected
from tripod.serving.errors import error_body
from tripod.serving.generation import Choice, generate, total_usage
from tripod.serving.metrics import Metrics
from tripod.trace import Event, Finished

if TYPE_CHECKING:
    from tripod.engine.engine import Engine

Body = dict[str, Any]


class Writer(Protocol):
    """Turns events into the bodies of one endpoint."""

    def chunk(self, choice: Choice, event: Event) -> Body | None: ...  # None: nothing to send yet

    def usage_chunk(self, usage: Usage) -> Body: ...  # the last chunk of a stream, where it was asked for

    def whole(self, usage: Usage) -> Body: ...  # all chunks so far, as one body


async def respond(
    request: Request,
    engine: Engine,
    choices: Sequence[Choice],
    writer: Writer,
    metrics: Metrics,
    *,
    num_choices: int,
    stream: bool,
    include_usage: bool,
) -> Response:
    """Runs the choices and answers. `num_choices` is how many belong to one prompt."""

    async def whole() -> Response:
        finished: dict[int, Finished] = {}
        async with aclosing(generate(engine, choices, metrics)) as events:
            async for choice, event in events:
                writer.chunk(choice, event)
                if isinstance(event, Finished):
                    finished[choice.index] = event
        return JSONResponse(writer.whole(_usage(finished, num_choices)))

    async def streamed() -> Response:
        events = generate(engine, choices, metrics)
        # The status is sent with the first event, so what is refused before any work gets a status of its own.
        first = await anext(events)
        return EventStream(_frames(first, events, writer, num_choices if include_usage else None))

    return await unless_disconnected(request, streamed if stream else whole)


async def _frames(
    first: tuple[Choice, Event], rest: AsyncGenerator[tuple[Choice, Event], None], writer: Writer, num_choices: int | None
) -> AsyncGenerator[bytes, None]:
    """The stream of one response. With `num_choices` (of one prompt) it ends with the usage."""
    finished: dict[int, Finished] = {}
    async with aclosing(rest):
        try:
            async for choice, event in _chained(first, rest):
                body = writer.chunk(choice, event)
                if isinstance(event, Finished):
                    finished[choice.index] = event
                if body is not None:
                    yield frame(body)
        except Exception as error:
            yield frame(error_body(error).to_json())  # and no [DONE]: the answer is not complete
            return
    if num_choices is not None:
        yield frame(writer.usage_chunk(_usage(finished, num_choices)))
    yield DONE


async def _chained(
    first: tuple[Choice, Event], rest: AsyncGenerator[tuple[Choice, Event], None]
) -> AsyncGenerator[tuple[Choice, Event], None]:
    yield first
    async for item in rest:
        yield item


def _usage(finished: dict[int, Finished], num_choices: int) -> Usage:
    return total_usage([finished[index] for index in sorted(finished)], num_choices)
