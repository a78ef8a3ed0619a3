"""LangChain's own suite for vector stores, sync and async, on SQLite and PostgreSQL. No deviation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("langchain_tests", reason="run: pip install 'tripod[conformance]'")

from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

import tripod
from tests.conformance.langchain_store import LangChainStore
from tripod.retrieval.open_store import open_store


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, address: str) -> Iterator[LangChainStore]:
        store = tripod.run(open_store(address, pipeline="langchain", embedder="langchain"))
        yield LangChainStore(store, self.get_embeddings())
        tripod.run(store.aclose())
