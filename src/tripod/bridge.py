"""The one bridge from synchronous code to Tripod's asynchronous functions.

`run` and `iterate` execute on a background event loop that lives as long as the process, so both also work where a
loop already runs (a notebook, a web handler).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

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

    Ctrl-C cancels the coroutine and waits for its clean-up before KeyboardInterrupt rises.

    Raises:
        RuntimeError: called from the bridge's own loop, where it would wait for itself; `await` there instead.
    """
    loop = _background_loop()
    if _running_loop() is loop:
        coroutine.close()
        raise RuntimeError("tripod.run was called from a coroutine that tripod.run is running; use 'await' there")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        asyncio.run_coroutine_threadsafe(_settled(), loop).result(timeout=5.0)
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


async def _settled() -> None:
    """One turn of the loop after a cancellation, so that the cancelled task's `finally` blocks have run."""
    await asyncio.sleep(0)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
