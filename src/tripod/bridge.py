"""The one bridge from synchronous code to Tripod's asynchronous functions.

`run` and `iterate` execute on a background event loop that lives as long as the process, so both also work where a
loop already runs (a notebook, a web handler).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run_forever, args=(loop,), name="tripod-bridge", daemon=True)
            thread.start()
            atexit.register(_stop, loop, thread)
            _loop = loop
        return _loop


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):  # a task that raises these throws its loop over; its caller is told, and the others go on
            continue
        return


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
    outcome: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(loop.create_task(coroutine))
        tasks[0].add_done_callback(lambda task: _hand_over(task, outcome))

    loop.call_soon_threadsafe(begin)
    try:
        return outcome.result()
    except KeyboardInterrupt:
        if not outcome.done():
            loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            wait((outcome,))
        _wait_for_threads(loop)
        raise


def _wait_for_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Threads that still work for a cancelled coroutine cannot be stopped, and the program must not end under them.

    anyio tells its worker threads to stop when the task that they worked for has ended; they do after what they are at.
    """
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()  # so that they have been told
    for thread in threading.enumerate():
        if getattr(thread, "stopping", False):
            thread.join()


def _hand_over(task: asyncio.Task[T], outcome: Future[T]) -> None:
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is None:
        outcome.set_result(task.result())
    else:
        outcome.set_exception(error)


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


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
