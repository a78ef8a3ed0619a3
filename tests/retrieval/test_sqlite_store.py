"""The store in a file: the contract of all stores, and what is its own."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from tripod.protocols import Store
from tripod.retrieval.sqlite_store import SqliteStore
from tripod.testing.store import EMBEDDER, StoreContract


class TestSqliteStore(StoreContract):
    @asynccontextmanager
    async def open_store(self, embedder: str | None = EMBEDDER) -> AsyncIterator[Store]:
        with tempfile.TemporaryDirectory() as folder:
            async with aclosing(SqliteStore(Path(folder) / "kb.db", pipeline="p", embedder=embedder)) as store:
                yield store
