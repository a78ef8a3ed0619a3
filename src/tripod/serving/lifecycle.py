"""From taking requests, to draining, to the end: what is admitted is finished, and what cannot be is told so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tripod.serving.errors import ShuttingDownError


class Lifecycle:
    """Of one server. Used from its event loop alone."""

    def __init__(self) -> None:
        self.num_open = 0  # requests that were admitted and have not ended
        self._retry_after_s = 1.0
        self._is_draining = False
        self._is_cut = False
        self._on_cut: set[Callable[[ShuttingDownError], None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def begin_drain(self, retry_after_s: float) -> None:
        """From now on nothing new is taken; whoever asks is told to come back, to whatever will be here then."""
        self._is_draining = True
        self._retry_after_s = retry_after_s

    def check_open(self) -> None:
        """
        Raises:
            ShuttingDownError: the server drains.
        """
        if self._is_draining:
            raise ShuttingDownError("this server is stopping and takes no more requests", retry_after_s=self._retry_after_s)

    def enter(self) -> None:
        """A request is admitted.

        Raises:
            ShuttingDownError: the server drains.
        """
        self.check_open()
        self.num_open += 1
        self._idle.clear()

    def leave(self) -> None:
        """An admitted request has ended, its last byte included."""
        self.num_open -= 1
        if not self.num_open:
            self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request is open. False: some still are."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextmanager
    def told_of_cut(self, tell: Callable[[ShuttingDownError], None]) -> Iterator[None]:
        """While inside, `tell` is called with the error to end with when the server cannot wait longer."""
        if self._is_cut:
            tell(self._cut_error())
        self._on_cut.add(tell)
        try:
            yield
        finally:
            self._on_cut.discard(tell)

    def cut(self) -> None:
        """End every open request with an error: its client is told, and no socket is cut."""
        self._is_cut = True
        for tell in list(self._on_cut):
            tell(self._cut_error())

    def _cut_error(self) -> ShuttingDownError:
        return ShuttingDownError("this server is stopping and could not wait for the end of the answer", retry_after_s=self._retry_after_s)
