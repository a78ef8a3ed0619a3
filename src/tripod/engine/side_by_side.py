"""Many small batches computed side by side, each on one thread, instead of one after the other, each on all threads.

A batch that is cut into pieces waits at the end of every operation for the slowest piece. On a machine that does other
work too these waits add up; batches that do not know of each other never wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_starting = threading.Lock()


def _nothing() -> None:
    pass


class SideBySide:
    """As many threads as torch would use for one operation; an operation inside any of them uses that thread alone."""

    def __init__(self, start_thread: Callable[[], None] = _nothing) -> None:
        """
        Args:
            start_thread: called once on each of the threads.
        """
        self.num_threads = torch.get_num_threads()
        self._start_thread = start_thread
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The results in the order of the items. A single item is computed by the caller, with all threads."""
        if len(items) < 2 or self.num_threads < 2:
            return [function(item) for item in items]
        if self._pool is None:
            self._pool = _serial_threads(self.num_threads, self._start_thread)
        return list(self._pool.map(function, items))


def _serial_threads(num_threads: int, start_thread: Callable[[], None]) -> ThreadPoolExecutor:
    all_started = threading.Barrier(num_threads + 1)

    def start() -> None:
        torch.get_num_threads()  # the first look of a thread sets its number; only then does another one stay
        torch.set_num_threads(1)
        start_thread()
        all_started.wait()

    with _starting:
        wanted = torch.get_num_threads()
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tripod-side-by-side", initializer=start)
        for _ in range(num_threads):
            pool.submit(_nothing)
        all_started.wait()
        # torch keeps the number for each thread, and beside it the one that threads to come begin with: put that back.
        torch.set_num_threads(wanted)
    return pool
