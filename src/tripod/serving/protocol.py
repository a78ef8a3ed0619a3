"""One connection: uvicorn's, with an end to clients that connect and say nothing, or that take nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_TIMEOUT_S = 30.0  # from the first byte, or the connection, to the end of a request's headers
_MAX_HEADER_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """Aborts a connection whose request headers do not come; tells the application how to abort it, and when a request came.

    Among many requests the last waits for its turn on the event loop; the wait counts from here, as its client's clock does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_due: asyncio.TimerHandle | None = None
        self._is_in_headers = True  # of the request that comes, or will be the first
        self._num_header_bytes = 0
        self._came_s = 0.0  # the bytes that are being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        self._came_s = time.monotonic()
        super().data_received(data)
        if not self._is_in_headers:
            self._forget_headers()
            return
        self._num_header_bytes += len(data)
        if self._num_header_bytes > _MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers have more than {_MAX_HEADER_BYTES} bytes.")
        self._expect_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_headers = True
        self.scope["tripod.arrived_s"] = self._came_s  # type: ignore[typeddict-unknown-key]
        self.scope["tripod.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        self.scope["tripod.is_blocked"] = self._is_blocked  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._num_header_bytes = 0
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    def _is_blocked(self) -> bool:
        """Whether a send would wait for the client to take what was sent before."""
        return self.flow.write_paused

    def _expect_headers(self) -> None:
        if self._headers_due is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up)

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _give_up(self) -> None:
        self._headers_due = None
        self.transport.abort()
