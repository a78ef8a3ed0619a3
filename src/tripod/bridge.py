"""The one bridge from synchronous code to Tripod's asynchronous functions.

`run` and `iterate` execute on a background event loop that lives as long as the process, so both also work where a
loop already runs (a notebook, a web handler).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anyio import CancelScope

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="tripod-bridge", daemon=True)
            thread.start()
            atexit.register(_stop, loop, thread)
            _loop = loop
        return _loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5.0)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result.

    Ctrl-C cancels the coroutine and waits for its clean-up before KeyboardInterrupt rises; a second one does not wait.

    Raises:
        RuntimeError: called from the bridge's own loop, where it would wait for itself; `await` there instead.
    """
    loop = _background_loop()
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("tripod.run was called from a coroutine that tripod.run is running; use 'await' there")
    scopes: list[CancelScope] = []
    future = asyncio.run_coroutine_threadsafe(_in_scope(coroutine, scopes), loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(_cancel, scopes, loop)
        wait([future])
        raise


def iterate(events: AsyncIterable[T]) -> Iterator[T]:
    """Iterate over an async iterable from synchronous code; leaving the loop early closes the iterable."""
    iterator: AsyncIterator[T] = aiter(events)
    try:
        while True:
            try:
                yield run(_next(iterator))
            except StopAsyncIteration:
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            run(close())


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)


async def _in_scope(coroutine: Coroutine[Any, Any, T], scopes: list[CancelScope]) -> T:
    """A scope of anyio's, unlike `Task.cancel`, does not leave behind the threads that work for the coroutine."""
    from anyio import CancelScope

    with CancelScope() as scope:
        scopes.append(scope)
        return await coroutine
    raise asyncio.CancelledError


def _cancel(scopes: list[CancelScope], loop: asyncio.AbstractEventLoop) -> None:
    if scopes:
        scopes[0].cancel()
    else:
        loop.call_soon(_cancel, scopes, loop)  # the coroutine has not begun


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
