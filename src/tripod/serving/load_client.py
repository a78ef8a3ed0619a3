"""HTTP/1.1 as a load generator needs it: kept connections, and the moment at which bytes came, before anything is made of them.

A general client spends more on each token than a fast server does; on a shared machine it would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

OnData = Callable[[bytes, float], None]  # the next bytes of a body, and the monotonic seconds at which they came


class WireError(Exception):
    """The connection failed, or what came is not HTTP."""


class _Wire(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self._buffer = bytearray()
        self._came_s = 0.0
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._came_s = time.monotonic()
        self._buffer += data
        self._wake()

    def eof_received(self) -> None:
        self.is_lost = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost, self._error = True, exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        if self.is_lost:
            raise WireError(f"the server closed the connection: {self._error or 'no reason given'}")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            await self._more()
        taken = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return taken

    def _take(self, num_bytes: int) -> bytes:
        taken = bytes(self._buffer[:num_bytes])
        del self._buffer[:num_bytes]
        return taken

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, whose names are in lower case."""
        first, *lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise WireError(f"the answer begins with {first[:80]!r}, which is not HTTP/1.1")
        pairs = (line.partition(":") for line in lines)
        return int(words[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def body(self, headers: Mapping[str, str], on_data: OnData) -> bool:
        """Reads the body to its end. Whether the connection can be used again."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while (size := int((await self._until(b"\r\n")).partition(b";")[0], 16)) > 0:
                while len(self._buffer) < size + 2:
                    await self._more()
                on_data(self._take(size), self._came_s)
                self._take(2)
            await self._until(b"\r\n")  # trailers, which nobody sends
        elif "content-length" in headers:
            left = int(headers["content-length"])
            while left:
                while not self._buffer:
                    await self._more()
                data = self._take(left)
                left -= len(data)
                on_data(data, self._came_s)
        else:
            while not self.is_lost or self._buffer:
                if self._buffer:
                    on_data(self._take(len(self._buffer)), self._came_s)
                if not self.is_lost:
                    await self._more()
            return False
        return headers.get("connection", "").lower() != "close"


class LoadClient:
    """Asks one server. A connection that is free is taken again, else another is opened."""

    def __init__(self, url: str, *, headers: Mapping[str, str] = {}, timeout_s: float = 600.0) -> None:
        """
        Args:
            url: any of the server; paths of requests begin at its root.
            headers: of every request.
            timeout_s: for the whole of one request.
        """
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._timeout_s = timeout_s
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in {"host": parts.netloc, **headers}.items())
        self._free: list[_Wire] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for wire in self._free:
            assert wire.transport is not None
            wire.transport.close()
        self._free.clear()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] = {},
        on_sent: Callable[[float], None] = lambda _: None,
        on_head: Callable[[int, Mapping[str, str]], None] = lambda _, __: None,
        on_data: OnData,
    ) -> None:
        """One request and its answer. Whatever `on_data` raises ends it; the connection is closed then, and when it is cancelled.

        Args:
            on_sent: is told the monotonic seconds at which the request was handed to the socket.

        Raises:
            WireError: no answer, or not the whole of it, came.
        """
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        kind = "" if body is None else f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
        own = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"{method} {path} HTTP/1.1\r\n{self._fixed}{own}{kind}\r\n".encode("latin-1") + content
        wire = await self._wire()
        assert wire.transport is not None
        is_reusable = False
        try:
            async with asyncio.timeout(self._timeout_s) as bound:
                on_sent(time.monotonic())
                wire.transport.write(request)
                status, answer_headers = await wire.head()
                on_head(status, answer_headers)
                is_reusable = await wire.body(answer_headers, on_data)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise WireError(f"the answer did not end within {self._timeout_s:g} s") from error
        except ValueError as error:
            raise WireError(f"what came cannot be read: {error}") from error
        finally:
            if is_reusable and not wire.is_lost:
                self._free.append(wire)
            else:
                wire.transport.close()

    async def _wire(self) -> _Wire:
        while self._free:
            wire = self._free.pop()
            if not wire.is_lost:
                return wire
        try:
            async with asyncio.timeout(self._timeout_s):
                _, wire = await asyncio.get_running_loop().create_connection(_Wire, self._host, self._port, ssl=self._is_tls or None)
        except OSError as error:  # TimeoutError is one
            raise WireError(f"cannot connect to {self._host}:{self._port}: {error}") from error
        return wire
