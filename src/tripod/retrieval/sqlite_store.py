"""The embedded store: sources, passages, words (FTS5) and vectors in one SQLite file.

Words are searched by FTS5's BM25, vectors exactly, by one matrix product, and where there are many approximately (`ann.py`). A reader
sees the index as it was at one moment, whatever a writer does meanwhile (write-ahead log), and a killed writer leaves what the last
transaction left.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from tripod.documents import Document, Passage, SourceState, StoredSource, StoreStats
from tripod.errors import StoreError
from tripod.filters import Filter, Where, parse
from tripod.retrieval import ann, fts5, sqlite_file, sqlite_schema
from tripod.retrieval.ann import AnnIndex
from tripod.retrieval.ann_search import approximate_search
from tripod.retrieval.local_search import exact_search
from tripod.retrieval.passage_table import PassageTable
from tripod.retrieval.query import terms
from tripod.retrieval.sqlite_check import find_damage
from tripod.retrieval.sqlite_file import SqliteFile, meta, transaction, vectors_of
from tripod.retrieval.sqlite_rows import insert_source, read_document, read_passage, read_source, read_sources, read_stats
from tripod.retrieval.sqlite_where import condition
from tripod.retrieval.vector_format import VectorFormat

if TYPE_CHECKING:
    from tripod.protocols import Vectors

T = TypeVar("T")


class SqliteStore:
    """A `Store` in one SQLite file, or, made at the first write, in the place where it will be.

    Args:
        path: the file. Its folder must exist.
        pipeline: names what makes passages of files; an index made by another one is refused.
        embedder: the embedder's fingerprint; None if there is none. An index made by another one is refused.
        vectors: the format that vectors are kept in; None: that of the index, and float32 in a new one.
        ann_threshold: from so many passages on, vectors are searched approximately, if usearch is installed.

    Raises:
        StoreError: the file is not an index of ours, is newer than this version, or was made by others than the named.
    """

    def __init__(
        self,
        path: Path,
        *,
        pipeline: str | None,
        embedder: str | None,
        vectors: VectorFormat | None = None,
        ann_threshold: int = ann.ANN_THRESHOLD,
    ) -> None:
        self.path = path
        self._file = SqliteFile(path, pipeline=pipeline, embedder=embedder, vectors=vectors)
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        # One thread at a time uses a connection. The limiters keep others from waiting in threads; the locks hold for a thread
        # too whose caller asyncio has cancelled, which leaves it at work.
        self._reading, self._writing = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
        self._reader_lock, self._writer_lock = threading.Lock(), threading.Lock()
        self.ann_threshold = ann_threshold
        self._ann: AnnIndex | None = None
        self._table: PassageTable | None = None  # of all passages, or of those that the approximate index does not know
        self._seen_change = 0  # the last of `changes` that the table knows
        self._reader = self._file.open_reader()

    async def stats(self) -> StoreStats | None:
        return await self._read(self._stats, None)

    async def sources(self, where: Where | None = None) -> dict[str, SourceState]:
        wanted = parse(where or {})
        return await self._read(lambda reader: read_sources(reader, wanted), {})

    async def document(self, source: str) -> Document | None:
        stored = await self._read(lambda reader: read_document(reader, source), None)
        return stored[1] if stored is not None else None

    async def read(self, source: str) -> StoredSource | None:
        return await self._read(lambda reader: read_source(reader, source), None)

    async def search(self, text: str | None, vector: Vectors | None, *, k: int, where: Where | None = None) -> list[Passage]:
        wanted = terms(text) if text is not None else []
        only = parse(where) if where else None
        found = await self._read(lambda reader: self._search(reader, wanted, vector, k, only), None)
        if found is None:
            raise StoreError(f"there is no index at {self.path}; make it with sync")
        return found

    async def count(self, words: Sequence[str]) -> list[int]:
        return await self._read(lambda reader: [fts5.num_matches(reader, word) for word in words], [0] * len(words))

    async def replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        await anyio.to_thread.run_sync(self._replace, document, passages, vectors, state, limiter=self._writing)

    async def remove(self, source: str) -> None:
        await anyio.to_thread.run_sync(self._remove, source, limiter=self._writing)

    async def settle(self) -> None:
        """Bring the approximate index up to date, once there are many vectors. Readers and writers go on meanwhile."""
        if await self._read(lambda reader: ann.needs_update(reader, self.path, self.ann_threshold), False):
            await anyio.to_thread.run_sync(self._build_ann, limiter=self._writing)

    async def check(self) -> list[str]:
        return await self._read(find_damage, [])

    async def repair(self) -> None:
        await anyio.to_thread.run_sync(self._repair, limiter=self._writing)
        await self.settle()

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._close, limiter=self._writing)

    def _close(self) -> None:
        with self._reader_lock, self._writer_lock:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()
            self._reader = self._writer = None

    # Reading

    async def _read(self, read: Callable[[sqlite3.Connection], T], when_empty: T) -> T:
        """What `read` makes of one moment of the index; `when_empty` while nothing was ever written."""

        def in_thread() -> T:
            with self._reader_lock:
                try:
                    if self._reader is None:
                        self._reader = self._file.open_reader()
                    if self._reader is None:
                        return when_empty
                    with transaction(self._reader, "BEGIN"):
                        return read(self._reader)
                except sqlite3.DatabaseError as error:
                    raise StoreError(
                        f"{self.path} cannot be read: {error}; if it is damaged, run `tripod kb repair`, or delete it and make it anew"
                    ) from error

        return await anyio.to_thread.run_sync(in_thread, limiter=self._reading)

    def _stats(self, reader: sqlite3.Connection) -> StoreStats:
        files = [self.path, self.path.with_name(f"{self.path.name}-wal"), *self.path.parent.glob(f"{self.path.name}.*.usearch")]
        opened = AnnIndex.open(self.path, ann.sidecar_of(meta(reader)))
        approximate = f"HNSW, by usearch, of {opened.sidecar.num_vectors} vectors" if opened is not None else None
        return read_stats(reader, sum(file.stat().st_size for file in files if file.exists()), approximate)

    def _search(self, reader: sqlite3.Connection, wanted: list[str], vector: Vectors | None, k: int, only: Filter | None) -> list[Passage]:
        table = self._load_table(reader)
        if vector is not None:
            self._file.check_makers(reader)  # another process may have brought the first vectors after we opened the index
        if self._ann is not None:
            found = approximate_search(reader, self._ann, table, wanted, vector, k, only)
        elif table.num_passages == 0:
            found = []
        else:
            allowed = None
            if only is not None:
                sql, parameters = condition(only)
                allowed = table.of_sources([row[0] for row in reader.execute(f"SELECT id FROM sources WHERE {sql}", parameters)])
            found = exact_search(reader, table, wanted, vector, k, allowed)
        return [read_passage(reader, *one) for one in found]

    def _load_table(self, reader: sqlite3.Connection) -> PassageTable:
        """The passages as they are now. Of a table that was loaded before, only what changed since is read."""
        # Two queries: of one with both, SQLite would read every row.
        [oldest, newest] = reader.execute(
            "SELECT coalesce((SELECT min(number) FROM changes), 1), coalesce((SELECT max(number) FROM changes), 0)"
        ).fetchone()
        made_by = meta(reader)
        sidecar = ann.sidecar_of(made_by)
        if sidecar != (self._ann.sidecar if self._ann is not None else None):
            opened = AnnIndex.open(self.path, sidecar)
            if opened is not None and oldest > opened.sidecar.change + 1:
                opened = None  # too old to know what changed since
            if opened is not None or self._ann is not None:
                self._ann, self._table = opened, None
        columns = "SELECT source_id, source, passages.id, start, vector FROM passages JOIN sources ON sources.id = source_id"
        if self._table is not None and newest == self._seen_change:
            return self._table
        is_new = self._table is None or oldest > self._seen_change + 1
        if self._table is None or is_new:
            self._table = PassageTable(vectors_of(made_by))
            self._seen_change = self._ann.sidecar.change if self._ann is not None else 0
        if is_new and self._ann is None:
            rows = reader.execute(f"{columns} ORDER BY source_id")
        else:
            changed = [row[0] for row in reader.execute("SELECT DISTINCT source_id FROM changes WHERE number > ?", (self._seen_change,))]
            for source_id in changed:
                self._table.remove(source_id)
            rows = reader.execute(
                f"{columns} WHERE source_id IN (SELECT value FROM json_each(?)) ORDER BY source_id", (json.dumps(changed),)
            )
        self._seen_change = -1  # should this fail half-way, everything is loaded anew
        for (source_id, source), group in groupby(rows, key=lambda row: row[:2]):
            _, _, ids, starts, vectors = zip(*group, strict=True)
            self._table.add(source_id, source, ids, starts, vectors)
        self._seen_change = newest
        return self._table

    # Writing

    def _replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        with self._write() as writer:
            if vectors is not None:
                self._file.claim_embedder(writer)
            writer.execute("DELETE FROM sources WHERE source = ?", (document.source,))
            insert_source(writer, document, passages, vectors, state)
            self._forget_old_changes(writer)

    def _remove(self, source: str) -> None:
        with self._write() as writer:
            writer.execute("DELETE FROM sources WHERE source = ?", (source,))
            self._forget_old_changes(writer)

    def _forget_old_changes(self, writer: sqlite3.Connection) -> None:
        writer.execute("DELETE FROM changes WHERE number <= (SELECT max(number) FROM changes) - ?", (sqlite_schema.KEPT_CHANGES,))

    def _repair(self) -> None:
        with self._write() as writer:
            sqlite_schema.rebuild_words(writer)
            writer.execute("DELETE FROM passages WHERE source_id NOT IN (SELECT id FROM sources)")
            writer.execute("REINDEX")
            writer.execute("DELETE FROM meta WHERE key = 'ann'")

    def _build_ann(self) -> None:
        """From a connection of its own, so that neither searches nor writes wait for it."""
        reader = self._file.connect()
        try:
            with transaction(reader, "BEGIN"):
                sidecar = ann.build(reader, self.path, vectors_of(meta(reader)))
        finally:
            reader.close()
        if sidecar is not None:
            with self._write() as writer:
                ann.record(writer, self.path, sidecar)

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._writer_lock:
            try:
                if self._writer is None:
                    self._writer = self._file.open_writer()
                with transaction(self._writer, "BEGIN IMMEDIATE"):
                    yield self._writer
            except sqlite3.DatabaseError as error:
                raise StoreError(self._writing_failed(error)) from error

    def _writing_failed(self, error: sqlite3.DatabaseError) -> str:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return f"{self.path}: another process has been writing for {sqlite_file.BUSY_TIMEOUT_S:g} s; wait for it to end, then try again"
        return f"{self.path} cannot be written: {error}; what was written before is kept"
