"""The store on a PostgreSQL server: the contract of all stores, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.retrieval.postgres_server import fresh_index
from tripod.protocols import Store
from tripod.retrieval.postgres_store import PostgresStore
from tripod.testing.store import EMBEDDER, StoreContract


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def server(self, postgres: str) -> None:
        self.address = postgres

    @asynccontextmanager
    async def open_store(self, embedder: str | None = EMBEDDER) -> AsyncIterator[Store]:
        async with aclosing(await PostgresStore.open(fresh_index(self.address), pipeline="p", embedder=embedder)) as store:
            yield store
