"""The load generator's client against servers that answer in every lawful way, byte by byte, and in some unlawful ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from tripod.serving.load_client import LoadClient, WireError

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n"
COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world"
LAST = b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nRetry-After: 3\r\nContent-Length: 11\r\n\r\nhello world"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\nhello world"


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """A server whose connections are all at their end when it is."""
    open_connections: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        try:
            await handler(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            await asyncio.gather(*open_connections)
            await asyncio.sleep(0.01)  # what was closed is gone after a turn of the loop


def exchange(answers: list[bytes], *, piece: int = 10**6, closes: bool = False, timeout_s: float = 10.0) -> tuple[list[str], int]:
    """Asks once for each answer. What came, as texts with their statuses; and how many connections it took."""
    num_connections = 0
    waiting = iter(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            content = next(waiting)
            for begin in range(0, len(content), piece):
                writer.write(content[begin : begin + piece])
                await writer.drain()
                await asyncio.sleep(0)
            if closes or b"close" in content:
                break

    async def ask(client: LoadClient) -> str:
        body: list[bytes] = []
        told: list[str] = []

        def head(status: int, headers: Mapping[str, str]) -> None:
            told.append(f"{status} {headers.get('retry-after', '')}".strip())

        await client.ask("GET", "/", on_head=head, on_data=lambda data, _: body.append(data))
        return f"{told[0]}: {b''.join(body).decode()}"

    async def main() -> list[str]:
        async with answering(answer) as url, LoadClient(url, timeout_s=timeout_s) as client:
            return [await ask(client) for _ in answers]

    return asyncio.run(main()), num_connections


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_an_answer_is_the_same_however_its_bytes_are_cut_and_a_connection_serves_again(piece: int) -> None:
    texts, num_connections = exchange([CHUNKED, COUNTED, CHUNKED, LAST, COUNTED], piece=piece)
    assert texts == ["200: hello world"] * 3 + ["429 3: hello world", "200: hello world"]
    assert num_connections == 2  # the fourth answer closes


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    assert exchange([UNTIL_CLOSED, COUNTED], closes=True)[0] == ["200: hello world", "200: hello world"]


@pytest.mark.parametrize(
    ("answer", "closes", "what"),
    [
        (CHUNKED[:-9], True, "closed the connection"),
        (COUNTED[:-1], True, "closed the connection"),
        (COUNTED[:-1], False, "did not end within 0.2 s"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", False, "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n", False, "cannot be read"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error_and_no_short_answer(answer: bytes, closes: bool, what: str) -> None:
    with pytest.raises(WireError, match=what):
        exchange([answer], closes=closes, timeout_s=0.2 if not closes else 10.0)


def test_the_time_of_bytes_is_that_of_their_arrival_and_not_of_their_reading() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(COUNTED[:-5])
        await asyncio.sleep(0.2)
        writer.write(COUNTED[-5:])

    async def main() -> tuple[float, list[float]]:
        sent: list[float] = []
        came: list[float] = []
        note: Callable[[bytes, float], None] = lambda _, now: came.append(now)  # noqa: E731
        async with answering(answer) as url, LoadClient(url) as client:
            await client.ask("GET", "/", on_sent=sent.append, on_data=note)
        return sent[0], came

    before = time.monotonic()
    sent, came = asyncio.run(main())
    assert before <= sent <= came[0] <= came[-1] <= time.monotonic()
    assert came[-1] - came[0] >= 0.15


def test_nobody_listening_is_an_error_that_names_the_place() -> None:
    async def main() -> None:
        async with LoadClient("http://127.0.0.1:9") as client:
            await client.ask("GET", "/", on_data=lambda _, __: None)

    with pytest.raises(WireError, match=r"cannot connect to 127\.0\.0\.1:9"):
        asyncio.run(main())
