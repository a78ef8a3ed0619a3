"""The embedded store: sources, passages, words (FTS5) and vectors in one SQLite file.

Words are searched by FTS5's BM25, vectors exactly, by one matrix product, and where there are many approximately (`ann.py`). A reader
sees the index as it was at one moment, whatever a writer does meanwhile (write-ahead log), and a killed writer leaves what the last
transaction left.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from tripod.documents import Document, Line, Page, Passage, Section, SourceState, StoredSource, StoreStats
from tripod.errors import StoreError
from tripod.filters import Filter, Where, parse
from tripod.retrieval import ann, fts5, sqlite_schema
from tripod.retrieval.ann import AnnIndex
from tripod.retrieval.ann_search import approximate_search
from tripod.retrieval.local_search import exact_search
from tripod.retrieval.passage_table import PassageTable
from tripod.retrieval.query import terms
from tripod.retrieval.sqlite_where import add_functions, condition
from tripod.retrieval.vector_format import FORMATS, VectorFormat, decode, dim_of, encode

if TYPE_CHECKING:
    from tripod.protocols import Vectors

T = TypeVar("T")

_BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another one


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
        self.pipeline = pipeline
        self.embedder = embedder
        self._wanted_vectors = vectors
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        # One thread at a time uses a connection. The limiters keep others from waiting in threads; the locks hold for a thread
        # too whose caller asyncio has cancelled, which leaves it at work.
        self._reading, self._writing = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
        self._reader_lock, self._writer_lock = threading.Lock(), threading.Lock()
        self._ann_threshold = ann_threshold
        self._ann: AnnIndex | None = None
        self._table: PassageTable | None = None  # of all passages, or of those that the approximate index does not know
        self._seen_change = 0  # the last of `changes` that the table knows
        self._reader = self._open_reader()

    async def stats(self) -> StoreStats | None:
        return await self._read(self._stats, None)

    async def sources(self, where: Where | None = None) -> dict[str, SourceState]:
        wanted = parse(where or {})
        return await self._read(lambda reader: self._sources(reader, wanted), {})

    async def document(self, source: str) -> Document | None:
        stored = await self._read(lambda reader: self._document(reader, source), None)
        return stored[1] if stored is not None else None

    async def read(self, source: str) -> StoredSource | None:
        return await self._read(lambda reader: self._read_source(reader, source), None)

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
        if await self._read(lambda reader: ann.needs_update(reader, self.path, self._ann_threshold), False):
            await anyio.to_thread.run_sync(self._build_ann, limiter=self._writing)

    async def check(self) -> list[str]:
        return await self._read(self._check, [])

    async def repair(self) -> None:
        await anyio.to_thread.run_sync(self._repair, limiter=self._writing)

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
                        self._reader = self._open_reader()
                    if self._reader is None:
                        return when_empty
                    with _transaction(self._reader, "BEGIN"):
                        return read(self._reader)
                except sqlite3.DatabaseError as error:
                    raise StoreError(
                        f"{self.path} cannot be read: {error}; if it is damaged, run `tripod kb repair`, or delete it and make it anew"
                    ) from error

        return await anyio.to_thread.run_sync(in_thread, limiter=self._reading)

    def _stats(self, reader: sqlite3.Connection) -> StoreStats:
        made_by = _meta(reader)
        num_sources, num_unembedded = reader.execute("SELECT count(*), coalesce(sum(NOT is_embedded), 0) FROM sources").fetchone()
        [num_passages] = reader.execute("SELECT count(*) FROM passages").fetchone()
        [num_vectors] = reader.execute(
            "SELECT count(*) FROM passages WHERE source_id IN (SELECT id FROM sources WHERE is_embedded)"
        ).fetchone()
        form = _format(made_by)
        opened = AnnIndex.open(self.path, ann.sidecar_of(made_by))
        sidecar = opened.sidecar if opened is not None else None
        one = reader.execute("SELECT length(vector) FROM passages WHERE vector IS NOT NULL LIMIT 1").fetchone()
        sizes = [path.stat().st_size for suffix in ("", "-wal") if (path := self.path.with_name(self.path.name + suffix)).exists()]
        return StoreStats(
            num_sources=num_sources,
            num_passages=num_passages,
            num_vectors=num_vectors,
            num_unembedded=num_unembedded,
            num_bytes=sum(sizes),
            dim=dim_of(one[0], form) if one else 0,
            vectors=form,
            pipeline=made_by["pipeline"],
            embedder=made_by.get("embedder"),
            approximate=f"HNSW, by usearch, of {sidecar.num_vectors} vectors" if sidecar is not None else None,
        )

    def _sources(self, reader: sqlite3.Connection, wanted: Filter) -> dict[str, SourceState]:
        sql, parameters = condition(wanted)
        rows = reader.execute(
            f"SELECT source, digest, root, size, mtime_ns, is_embedded FROM sources WHERE {sql} ORDER BY source", parameters
        )
        return {row[0]: _state(*row[1:]) for row in rows}

    def _document(self, reader: sqlite3.Connection, source: str) -> tuple[int, Document] | None:
        row = reader.execute("SELECT id, title, text, spans, metadata FROM sources WHERE source = ?", (source,)).fetchone()
        if row is None:
            return None
        source_id, title, text, spans, metadata = row
        kinds = json.loads(spans)
        return source_id, Document(
            source=source,
            text=text,
            title=title,
            sections=tuple(Section(*span) for span in kinds["sections"]),
            pages=tuple(Page(*span) for span in kinds["pages"]),
            lines=tuple(Line(*span) for span in kinds["lines"]),
            metadata=json.loads(metadata),
        )

    def _read_source(self, reader: sqlite3.Connection, source: str) -> StoredSource | None:
        found = self._document(reader, source)
        if found is None:
            return None
        source_id, document = found
        state = reader.execute("SELECT digest, root, size, mtime_ns, is_embedded FROM sources WHERE id = ?", (source_id,)).fetchone()
        rows = reader.execute(
            "SELECT start, end, section, page, line, vector FROM passages WHERE source_id = ? ORDER BY start, end, id", (source_id,)
        ).fetchall()
        form = _format(_meta(reader))
        vectors = [decode(row[5], form) for row in rows if row[5] is not None]
        return StoredSource(
            document=document,
            passages=tuple(
                Passage(
                    source=source,
                    start=start,
                    end=end,
                    text=document.text[start:end],
                    section=section,
                    page=page,
                    line=line,
                    metadata=document.metadata,
                )
                for start, end, section, page, line, _ in rows
            ),
            vectors=np.array(vectors, dtype=np.float32).reshape(len(rows), -1) if rows and vectors else None,
            state=_state(*state),
        )

    def _search(self, reader: sqlite3.Connection, wanted: list[str], vector: Vectors | None, k: int, only: Filter | None) -> list[Passage]:
        table = self._load_table(reader)
        if vector is not None:
            made_by = self._check_makers(reader)  # another process may have brought the first vectors after we opened the index
            if "embedder" not in made_by:
                vector = None  # or have filled it without any
        if self._ann is not None:
            found = approximate_search(reader, self._ann, table, partial(decode, form=table.form), wanted, vector, k, only)
        elif table.num_passages == 0:
            found = []
        else:
            allowed = None
            if only is not None:
                sql, parameters = condition(only)
                allowed = table.of_sources([row[0] for row in reader.execute(f"SELECT id FROM sources WHERE {sql}", parameters)])
            found = exact_search(reader, table, wanted, vector, k, allowed)
        return [self._passage(reader, *one) for one in found]

    def _passage(self, reader: sqlite3.Connection, passage_id: int, score: float) -> Passage:
        source, start, end, text, section, page, line, metadata = reader.execute(
            "SELECT source, start, end, words.text, passages.section, page, line, metadata FROM passages "
            "JOIN sources ON sources.id = source_id JOIN words ON words.rowid = passages.id WHERE passages.id = ?",
            (passage_id,),
        ).fetchone()
        return Passage(
            source=source,
            start=start,
            end=end,
            text=text,
            section=section,
            page=page,
            line=line,
            metadata=json.loads(metadata),
            score=score,
        )

    def _load_table(self, reader: sqlite3.Connection) -> PassageTable:
        """The passages as they are now. Of a table that was loaded before, only what changed since is read."""
        [oldest, newest] = reader.execute("SELECT coalesce(min(number), 1), coalesce(max(number), 0) FROM changes").fetchone()
        made_by = _meta(reader)
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
            self._table = PassageTable(_format(made_by))
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

    def _check(self, reader: sqlite3.Connection) -> list[str]:
        found = [f"SQLite: {row[0]}" for row in reader.execute("PRAGMA integrity_check") if row[0] != "ok"]
        found += [f"a passage of no source: {row[1]} of {row[0]}" for row in reader.execute("PRAGMA foreign_key_check")]
        for what, sql in _INCONSISTENCIES.items():
            found += [f"{what}: {row[0]}" for row in reader.execute(sql)]
        lengths = "SELECT length(vector) FROM passages WHERE vector IS NOT NULL GROUP BY length(vector) ORDER BY count(*) DESC LIMIT 1"
        others = f"SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE length(vector) != ({lengths})"
        found += [f"vectors of another length than most: {row[0]}" for row in reader.execute(others)]
        return found

    # Writing

    def _replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        spans = {kind: [list(asdict(span).values()) for span in getattr(document, kind)] for kind in ("sections", "pages", "lines")}
        with self._write() as writer:
            form = _format(_meta(writer))
            if vectors is not None:
                self._claim_embedder(writer)
            writer.execute("DELETE FROM sources WHERE source = ?", (document.source,))
            source_id = writer.execute(
                "INSERT INTO sources (source, digest, root, size, mtime_ns, is_embedded, title, text, spans, metadata) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    document.source,
                    state.digest,
                    state.root,
                    state.size,
                    state.mtime_ns,
                    vectors is not None,
                    document.title,
                    document.text,
                    json.dumps(spans),
                    json.dumps(dict(document.metadata)),
                ),
            ).lastrowid
            for i, passage in enumerate(passages):
                vector = None if vectors is None else encode(vectors[i], form)
                passage_id = writer.execute(
                    "INSERT INTO passages (source_id, start, end, section, page, line, vector) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (source_id, passage.start, passage.end, passage.section, passage.page, passage.line, vector),
                ).lastrowid
                assert passage_id is not None
                fts5.add_words(writer, passage_id, passage.section, passage.text)
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

    def _build_ann(self) -> None:
        """From a connection of its own, so that neither searches nor writes wait for it."""
        reader = self._connect()
        try:
            with _transaction(reader, "BEGIN"):
                sidecar = ann.build(reader, self.path, _format(_meta(reader)))
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
                    self._writer = self._open_writer()
                with _transaction(self._writer, "BEGIN IMMEDIATE"):
                    yield self._writer
            except sqlite3.DatabaseError as error:
                raise StoreError(self._writing_failed(error)) from error

    def _writing_failed(self, error: sqlite3.DatabaseError) -> str:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return f"{self.path}: another process has been writing for {_BUSY_TIMEOUT_S:g} s; wait for it to end, then try again"
        return f"{self.path} cannot be written: {error}; what was written before is kept"

    def _claim_embedder(self, writer: sqlite3.Connection) -> None:
        """The first vectors decide whose index this is; two writers may have opened it while it held none."""
        if self.embedder is None:
            raise StoreError("vectors were given to a store that was opened without an embedder's fingerprint")
        writer.execute("INSERT OR IGNORE INTO meta VALUES ('embedder', ?)", (self.embedder,))
        self._check_makers(writer)

    # Opening

    def _open_reader(self) -> sqlite3.Connection | None:
        """A connection to an index; None where nothing was ever written."""
        if not self.path.exists():
            return None
        if self._is_frozen():
            # Nobody can change it, so it needs no log beside it, which could not be written.
            connection = self._connect("?mode=ro&immutable=1")
        else:
            connection = self._connect()
        try:
            version = self._version(connection)
            if version == 0:
                connection.close()
                return None
            if version < sqlite_schema.VERSION:
                self._open_writer().close()
        except sqlite3.OperationalError as error:
            connection.close()
            raise StoreError(
                f"{self.path} cannot be opened: {error}; SQLite writes its log beside it, so copy the index to where you may write"
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_frozen(self) -> bool:
        """Whether the index lies where nothing may be written, with all of it in the one file."""
        log = self.path.with_name(self.path.name + "-wal")
        by_effective_id = os.access in os.supports_effective_ids
        return not os.access(self.path.parent, os.W_OK, effective_ids=by_effective_id) and not (log.exists() and log.stat().st_size)

    def _open_writer(self) -> sqlite3.Connection:
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path} cannot be made: there is no folder {self.path.parent}")
        connection = self._connect()
        try:
            if self._version(connection) < sqlite_schema.VERSION:
                connection.execute("PRAGMA journal_mode = WAL")
                with _transaction(connection, "BEGIN IMMEDIATE"):
                    version = self._version(connection)  # now: another process may have been faster
                    if version == 0:
                        if self.pipeline is None:
                            raise StoreError(f"there is no index at {self.path}")
                        sqlite_schema.create(connection, self.pipeline, self._wanted_vectors or "f32")
                    elif version < sqlite_schema.VERSION:
                        sqlite_schema.migrate(connection, version)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")  # with a write-ahead log: a killed process loses nothing
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, options: str = "") -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}{options}",
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.path} cannot be opened: {error}") from None
        add_functions(connection)
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        """Of the index; 0 while there is no table. One that is neither blank nor an index that we may use is refused."""
        try:
            [application_id] = connection.execute("PRAGMA application_id").fetchone()
            [version] = connection.execute("PRAGMA user_version").fetchone()
            [num_tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if application_id == 0 and num_tables == 0:
                return 0
            if application_id != sqlite_schema.APPLICATION_ID:
                raise StoreError(self._not_ours())
            if version > sqlite_schema.VERSION:
                raise StoreError(
                    f"{self.path} was made by a newer Tripod (schema {version}; this one reads {sqlite_schema.VERSION}); "
                    "upgrade Tripod, or make the index anew in another file"
                )
            self._check_makers(connection)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self._not_ours()} ({error})") from None
        return int(version)

    def _not_ours(self) -> str:
        return f"{self.path} is not an index of Tripod's; it is left as it is: name another file"

    def _check_makers(self, connection: sqlite3.Connection) -> dict[str, str]:
        made_by = _meta(connection)
        for maker, ours in (("pipeline", self.pipeline), ("embedder", self.embedder), ("vectors", self._wanted_vectors)):
            theirs = made_by.get(maker)
            if ours is not None and theirs is not None and ours != theirs:
                raise StoreError(
                    f"{self.path} was made with the {maker} {theirs!r}, and is opened with {ours!r}; what they make cannot be "
                    f"compared: open it with the same {maker}, or make the index anew in another file"
                )
        return made_by


# What must not be found in an index -> where it is found.
_INCONSISTENCIES = {
    "passages without words, which no search by words finds, in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id
        WHERE passages.id NOT IN (SELECT id FROM words_docsize)""",
    "words of no passage, by id": "SELECT id FROM words_docsize WHERE id NOT IN (SELECT id FROM passages) LIMIT 10",
    "passages outside of their text in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE NOT 0 <= start OR start > end
        OR end > length(text) AND instr(text, char(0)) = 0""",
    "passages without a vector in a source that has vectors": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE is_embedded != (vector IS NOT NULL)""",
}


def _meta(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM meta"))


def _format(made_by: dict[str, str]) -> VectorFormat:
    [form] = [form for form in FORMATS if form == made_by.get("vectors", "f32")]
    return form


def _state(digest: str, root: str, size: int, mtime_ns: int, is_embedded: int) -> SourceState:
    return SourceState(digest=digest, root=root, size=size, mtime_ns=mtime_ns, is_embedded=bool(is_embedded))


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.OperationalError):  # the failure may have ended the transaction already
            connection.execute("ROLLBACK")
        raise
