"""The store that lives as long as its process: for tests, notebooks, and what is indexed only to be asked once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread
import numpy as np

from tripod.documents import Document, Passage, SourceState, StoredSource, StoreStats
from tripod.errors import StoreError
from tripod.filters import Where, matches, parse
from tripod.retrieval import fts5
from tripod.retrieval.local_search import exact_search
from tripod.retrieval.passage_table import PassageTable
from tripod.retrieval.query import terms
from tripod.retrieval.vector_format import VectorFormat, decode, encode

if TYPE_CHECKING:
    from tripod.protocols import Vectors

T = TypeVar("T")


class MemoryStore:
    """A `Store` of plain Python values; its words are FTS5's, as in `SqliteStore`.

    Args:
        pipeline: names what makes passages of files.
        embedder: the embedder's fingerprint; None if there is none.
        vectors: the format that vectors are kept in.
    """

    def __init__(self, *, pipeline: str, embedder: str | None, vectors: VectorFormat = "f32") -> None:
        self.pipeline = pipeline
        self.embedder = embedder
        self.vectors = vectors
        self._lock = threading.Lock()  # every method is one moment
        self._stored: dict[str, tuple[int, StoredSource]] = {}  # source -> its id and what is kept of it
        self._passages: dict[int, Passage] = {}
        self._table = PassageTable(vectors)
        self._next_id = 1
        self._is_blank = True
        self._words = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._words.execute(fts5.SCHEMA)

    async def stats(self) -> StoreStats | None:
        return await self._run(self._stats)

    async def sources(self, where: Where | None = None) -> dict[str, SourceState]:
        wanted = parse(where or {})
        return await self._run(
            lambda: {
                source: stored.state
                for source, (_, stored) in sorted(self._stored.items())
                if matches(wanted, source, stored.document.metadata)
            }
        )

    async def document(self, source: str) -> Document | None:
        stored = await self.read(source)
        return stored.document if stored is not None else None

    async def read(self, source: str) -> StoredSource | None:
        return await self._run(lambda: self._stored[source][1] if source in self._stored else None)

    async def search(self, text: str | None, vector: Vectors | None, *, k: int, where: Where | None = None) -> list[Passage]:
        return await self._run(lambda: self._search(terms(text) if text is not None else [], vector, k, where))

    async def count(self, words: Sequence[str]) -> list[int]:
        return await self._run(lambda: [fts5.num_matches(self._words, word) for word in words])

    async def replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        await self._run(lambda: self._replace(document, passages, vectors, state))

    async def remove(self, source: str) -> None:
        await self._run(lambda: self._remove(source))

    async def settle(self) -> None:
        """Nothing is left to do."""

    async def check(self) -> list[str]:
        return []

    async def repair(self) -> None:
        """Nothing can break that a process survives."""

    async def aclose(self) -> None:
        """What is in it stays until the object goes."""

    async def _run(self, work: Callable[[], T]) -> T:
        def alone() -> T:
            with self._lock:
                return work()

        return await anyio.to_thread.run_sync(alone)

    def _search(self, wanted: list[str], vector: Vectors | None, k: int, where: Where | None) -> list[Passage]:
        allowed = None
        if where:
            condition = parse(where)
            stored = self._stored.values()
            allowed = self._table.of_sources(
                source_id for source_id, kept in stored if matches(condition, kept.document.source, kept.document.metadata)
            )
        if self._is_blank:
            raise StoreError("there is no index in memory yet; make it with sync")
        found = exact_search(self._words, self._table, wanted, vector, k, allowed)
        return [replace(self._passages[passage_id], score=score) for passage_id, score in found]

    def _replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        if vectors is not None and self.embedder is None:
            raise StoreError("vectors were given to a store that was opened without an embedder's fingerprint")
        self._remove(document.source)
        self._is_blank = False
        source_id, first = self._next_id, self._next_id
        ids = range(first, first + len(passages))
        self._next_id += max(1, len(passages))
        encoded = [None] * len(passages) if vectors is None else [encode(vector, self.vectors) for vector in vectors]
        for passage_id, passage in zip(ids, passages, strict=True):
            self._passages[passage_id] = replace(passage, metadata=document.metadata, score=None)
            fts5.add_words(self._words, passage_id, passage.section, passage.text)
        self._table.add(source_id, document.source, ids, [passage.start for passage in passages], encoded)
        kept = [decode(vector, self.vectors) for vector in encoded if vector is not None]
        self._stored[document.source] = (
            source_id,
            StoredSource(
                document=document,
                passages=tuple(self._passages[passage_id] for passage_id in ids),
                vectors=None if vectors is None else np.array(kept, dtype=np.float32).reshape(np.shape(vectors)),
                state=replace(state, is_embedded=vectors is not None),
            ),
        )

    def _remove(self, source: str) -> None:
        self._is_blank = False
        source_id, stored = self._stored.pop(source, (0, None))
        if stored is None:
            return
        for passage_id in range(source_id, source_id + len(stored.passages)):
            del self._passages[passage_id]
            self._words.execute("DELETE FROM words WHERE rowid = ?", (passage_id,))
        self._table.remove(source_id)

    def _stats(self) -> StoreStats | None:
        if self._is_blank:
            return None
        kept = [stored for _, stored in self._stored.values()]
        return StoreStats(
            num_sources=len(kept),
            num_passages=self._table.num_passages,
            num_vectors=sum(len(stored.passages) for stored in kept if stored.vectors is not None),
            num_unembedded=sum(stored.vectors is None for stored in kept),
            num_bytes=sum(len(stored.document.text.encode()) for stored in kept),
            dim=self._table.dim,
            vectors=self.vectors,
            pipeline=self.pipeline,
            embedder=self.embedder if self._table.dim else None,
        )
