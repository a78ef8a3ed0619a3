"""A client that goes away: its work is cancelled, whether it was waiting for one body or reading a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_CLIENT_CLOSED = 499  # nginx's status for it; nobody reads the response, but the access log does


async def unless_disconnected(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """Does the work, and cancels it when the client hangs up."""
    task = asyncio.ensure_future(work())
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=_CLIENT_CLOSED)
    finally:
        await _cancel(task, watch)


async def on_disconnect(_: Request, __: Exception) -> Response:
    """A client hung up while it was still sending its request."""
    return Response(status_code=_CLIENT_CLOSED)


class EventStream(Response):
    """Sends frames as they come. The frames are closed as soon as the client hangs up, even while none is due.

    A client that takes nothing for `send_timeout_s` counts as one that hung up.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], *, send_timeout_s: float) -> None:
        self._frames = frames
        self._send_timeout_s = send_timeout_s
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._send(send, scope.get("tripod.is_blocked", _unknown)))
        watch = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        except TimeoutError:
            scope.get("tripod.abort", _nothing)()  # closing would wait for the client to take what is written already
        finally:
            await _cancel(task, watch)
            await self._frames.aclose()  # a task cancelled before its first turn has not opened them

    async def _send(self, send: Send, is_blocked: Callable[[], bool]) -> None:
        async with aclosing(self._frames) as frames:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for frame in frames:
                message = {"type": "http.response.body", "body": frame, "more_body": True}
                if is_blocked():
                    async with asyncio.timeout(self._send_timeout_s):
                        await send(message)
                else:  # it will not wait, and a timer for each token costs more than to write it
                    await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _nothing() -> None:
    pass


def _unknown() -> bool:
    """What is served without our `Connection` may wait at any send."""
    return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[object] | asyncio.Future[Response] | asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
