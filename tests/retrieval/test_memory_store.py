"""The store in memory: the contract of all stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tripod.protocols import Store
from tripod.retrieval.memory_store import MemoryStore
from tripod.testing.store import EMBEDDER, StoreContract


class TestMemoryStore(StoreContract):
    @asynccontextmanager
    async def open_store(self, embedder: str | None = EMBEDDER) -> AsyncIterator[Store]:
        yield MemoryStore(pipeline="p", embedder=embedder)
