"""Work done ahead of the one who needs its results: in order, several at once, and never more than a few results waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

A = TypeVar("A")
B = TypeVar("B")


@dataclass(slots=True, eq=False)
class _Slot(Generic[B]):
    done: anyio.Event = field(default_factory=anyio.Event)
    result: B | None = None
    error: Exception | None = None


@asynccontextmanager
async def map_ahead(work: Callable[[A], Awaitable[B]], items: Iterable[A], *, ahead: int) -> AsyncIterator[AsyncIterator[B]]:
    """The results of `work` for each item, in the order of the items.

    Args:
        work: called for up to `ahead` items at once. What it raises rises where its result is taken.
        items: taken one at a time, in the event loop, as results are taken.
        ahead: results at work or waiting to be taken, at least 2.
    """
    send, receive = anyio.create_memory_object_stream[_Slot[B]](max(0, ahead - 2))  # one more is being taken, one being sent

    async def fill(slot: _Slot[B], item: A) -> None:
        try:
            slot.result = await work(item)
        except Exception as error:  # it rises in the caller's task, not as a group's
            slot.error = error
        finally:
            slot.done.set()

    async def feed(group: TaskGroup) -> None:
        async with send:
            try:
                for item in items:
                    slot = _Slot[B]()
                    group.start_soon(fill, slot, item)
                    await send.send(slot)
            except Exception as error:  # of the items themselves
                slot = _Slot[B](error=error)
                slot.done.set()
                await send.send(slot)

    async def take() -> AsyncIterator[B]:
        async for slot in receive:
            await slot.done.wait()
            if slot.error is not None:
                raise slot.error
            yield slot.result  # type: ignore[misc]  # None only if B allows it

    error: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(feed, group)
        results = take()
        try:
            yield results
        except Exception as raised:
            error = raised
        finally:
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await results.aclose()  # type: ignore[attr-defined]
                receive.close()
    if error is not None:
        raise error
