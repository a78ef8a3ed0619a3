"""Haystack's own suite for document stores, sync and async, on SQLite and PostgreSQL.

Deviations, and why:

- Documents are compared in the order of their ids: Haystack's in-memory store returns them in the order of writing, ours in that of names.
- Embeddings are compared as float32, which is what we keep (and what Haystack's embedders give); the suite's are random float64.
- `write_documents` without a policy refuses a document that is there already: the suite leaves this to the store, and has us test it.
- The suites for statistics of metadata (`count_unique_metadata_by_filter`, `get_metadata_field_*`) are left out: our stores have no such
  method, so that they would test the adapter only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("haystack", reason="run: pip install 'tripod[conformance]'")

from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.testing.document_store import CountDocumentsByFilterTest, DocumentStoreBaseExtendedTests
from haystack.testing.document_store_async import (
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
)

import tripod
from tests.conformance.haystack_store import HaystackStore


class _Ours:
    @pytest.fixture
    def document_store(self, address: str) -> Iterator[HaystackStore]:
        store = HaystackStore(address)
        yield store
        tripod.run(tripod.run(store.store()).aclose())

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert _comparable(received) == _comparable(expected)


class TestSync(_Ours, CountDocumentsByFilterTest, DocumentStoreBaseExtendedTests):
    def test_write_documents(self, document_store: HaystackStore) -> None:
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        self.assert_documents_are_equal(document_store.filter_documents(), [document])
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])


class TestAsync(
    _Ours,
    CountDocumentsAsyncTest,
    CountDocumentsByFilterAsyncTest,
    DeleteAllAsyncTest,
    DeleteByFilterAsyncTest,
    DeleteDocumentsAsyncTest,
    FilterDocumentsAsyncTest,
    UpdateByFilterAsyncTest,
    WriteDocumentsAsyncTest,
):
    async def test_write_documents_async(self, document_store: HaystackStore) -> None:
        document = Document(content="test doc")
        assert await document_store.write_documents_async([document]) == 1
        self.assert_documents_are_equal(await document_store.filter_documents_async(), [document])
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])


def _comparable(documents: list[Document]) -> list[Document]:
    return sorted(
        (
            replace(document, embedding=np.float32(document.embedding).tolist()) if document.embedding is not None else document
            for document in documents
        ),
        key=lambda document: document.id,
    )
