"""One connection: uvicorn's, with an end to clients that connect and say nothing, or that take nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_TIMEOUT_S = 30.0  # from the first byte, or the connection, to the end of a request's headers


class Connection(H11Protocol):
    """Aborts a connection whose request headers do not come; tells the application how to abort it, and when a request came.

    Among many requests the last waits for its turn on the event loop; the wait counts from here, as its client's clock does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_due: asyncio.TimerHandle | None = None
        self._first_byte_s: float | None = None  # of the request whose headers are being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app = self.app

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            scope["tripod.abort"] = transport.abort
            scope["tripod.arrived_s"], self._first_byte_s = self._first_byte_s, None
            await app(scope, receive, send)

        self.app = with_abort
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self._awaits_headers and self._first_byte_s is None:
            self._first_byte_s = time.monotonic()
        super().data_received(data)
        if self._awaits_headers:
            self._expect_headers()
        else:
            self._forget_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    @property
    def _awaits_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up)

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _give_up(self) -> None:
        self._headers_due = None
        if self._awaits_headers:
            self.transport.abort()
