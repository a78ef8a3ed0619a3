"""Closing a stream that may be left early."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


@asynccontextmanager
async def closing(events: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Closes what can be closed, at once and not when the garbage collector comes by: closing a stream stops its request.

    Nearly every stream is a generator, though the protocols ask only for an iterator.
    """
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            yield events
    else:
        yield events
