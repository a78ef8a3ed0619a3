"""The embedded store: sources, passages, words (FTS5) and vectors in one SQLite file.

Words are searched by FTS5's BM25, vectors exactly, by one matrix product. A reader sees the index as it was at one moment,
whatever a writer does meanwhile (write-ahead log), and a killed writer leaves what the last transaction left.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from tripod.documents import Document, Line, Page, Passage, Section, SourceState
from tripod.errors import StoreError
from tripod.protocols import Where
from tripod.retrieval.fusion import fuse
from tripod.retrieval.query import expression, terms
from tripod.retrieval.where import condition

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tripod.protocols import Vectors

T = TypeVar("T")

_APPLICATION_ID = 0x54526950  # "TRiP", in the file's header: this database is an index of Tripod's
_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another one
_K1 = 1.2  # of FTS5's BM25, which has no setting for it

_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    root TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    is_embedded INTEGER NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    spans TEXT NOT NULL,     -- JSON: sections, pages and lines
    metadata TEXT NOT NULL   -- JSON
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY,
    source_id INTEGER NOT NULL REFERENCES sources (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    section TEXT NOT NULL,
    page INTEGER,
    line INTEGER,
    vector BLOB              -- float32, little-endian, of unit length
);
CREATE INDEX passages_of_source ON passages (source_id);
CREATE VIRTUAL TABLE words USING fts5 (section, text, tokenize = 'porter unicode61');  -- rowid: passages.id
CREATE TRIGGER forget_words AFTER DELETE ON passages BEGIN DELETE FROM words WHERE rowid = old.id; END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};
"""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """All passages in the order of (source, start), which also breaks ties, with their vectors."""

    data_version: int
    ids: NDArray[np.int64]  # [N]
    source_ids: NDArray[np.int64]  # [N]
    vectors: Vectors  # [N, dim]; [N, 0] if there are none; zeros for a passage without one
    by_id: NDArray[np.int64]  # [N], positions that sort `ids`

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.by_id[np.searchsorted(self.ids, ids, sorter=self.by_id)]


class SqliteStore:
    """A `Store` in one SQLite file, or, made at the first write, in the place where it will be.

    Args:
        path: the file. Its folder must exist.
        pipeline: names what makes passages of files; an index made by another one is refused.
        embedder: the embedder's fingerprint; None if there is none. An index made by another one is refused.

    Raises:
        StoreError: the file is not an index of ours, is newer than this version, or was made by others than the named.
    """

    def __init__(self, path: Path, *, pipeline: str, embedder: str | None) -> None:
        self.path = path
        self.pipeline = pipeline
        self.embedder = embedder
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        # One thread at a time uses a connection. The limiters keep others from waiting in threads; the locks hold for a thread
        # too whose caller asyncio has cancelled, which leaves it at work.
        self._reading, self._writing = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
        self._reader_lock, self._writer_lock = threading.Lock(), threading.Lock()
        self._matrix: _Matrix | None = None
        self._reader = self._open_reader()

    async def sources(self) -> dict[str, SourceState]:
        return await self._read(self._sources, {})

    async def replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        await anyio.to_thread.run_sync(self._replace, document, passages, vectors, state, limiter=self._writing)

    async def remove(self, source: str) -> None:
        await anyio.to_thread.run_sync(self._remove, source, limiter=self._writing)

    async def document(self, source: str) -> Document | None:
        return await self._read(lambda reader: self._document(reader, source), None)

    async def search(self, text: str | None, vector: Vectors | None, *, k: int, where: Where | None = None) -> list[Passage]:
        words = terms(text) if text is not None else []
        wanted = condition(where) if where else None
        return await self._read(lambda reader: self._search(reader, words, vector, k, wanted), [])

    async def count(self, words: Sequence[str]) -> list[int]:
        return await self._read(lambda reader: [_num_matches(reader, terms(word)) for word in words], [0] * len(words))

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
                    raise StoreError(f"{self.path} cannot be read: {error}; if it is damaged, delete it and make the index anew") from error

        return await anyio.to_thread.run_sync(in_thread, limiter=self._reading)

    def _sources(self, reader: sqlite3.Connection) -> dict[str, SourceState]:
        rows = reader.execute("SELECT source, digest, root, size, mtime_ns, is_embedded FROM sources ORDER BY source")
        return {
            source: SourceState(digest=digest, root=root, size=size, mtime_ns=mtime_ns, is_embedded=bool(is_embedded))
            for source, digest, root, size, mtime_ns, is_embedded in rows
        }

    def _document(self, reader: sqlite3.Connection, source: str) -> Document | None:
        row = reader.execute("SELECT title, text, spans, metadata FROM sources WHERE source = ?", (source,)).fetchone()
        if row is None:
            return None
        title, text, spans, metadata = row
        kinds = json.loads(spans)
        return Document(
            source=source,
            text=text,
            title=title,
            sections=tuple(Section(*span) for span in kinds["sections"]),
            pages=tuple(Page(*span) for span in kinds["pages"]),
            lines=tuple(Line(*span) for span in kinds["lines"]),
            metadata=json.loads(metadata),
        )

    def _search(
        self, reader: sqlite3.Connection, words: list[str], vector: Vectors | None, k: int, wanted: tuple[str, list[Any]] | None
    ) -> list[Passage]:
        matrix = self._load_matrix(reader)
        num_passages = len(matrix.ids)
        if num_passages == 0:
            return []
        if vector is not None:
            self._check_makers(reader)  # another process may have brought the first vectors after we opened the index
            if matrix.vectors.shape[1] == 0:
                vector = None  # or have filled it without any
        allowed = np.ones(num_passages, dtype=bool)
        if wanted is not None:
            rows = reader.execute(f"SELECT id FROM sources WHERE {wanted[0]}", wanted[1]).fetchall()
            allowed = np.isin(matrix.source_ids, np.array([row[0] for row in rows], dtype=np.int64))
        bm25 = np.zeros(num_passages, dtype=np.float32)
        if words:
            # FTS5 gives smaller-is-better; all matches are fetched because fusion needs the score of every passage.
            matches = reader.execute("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (expression(words),)).fetchall()
            if matches:
                ids, scores = zip(*matches, strict=True)
                bm25[matrix.positions(np.array(ids, dtype=np.int64))] = scores
        if vector is None:
            scored, allowed = bm25, allowed & (bm25 > 0)
        else:
            cosine = matrix.vectors @ np.asarray(vector, dtype=np.float32)
            scored = fuse(bm25, _bm25_bound(reader, words, num_passages), cosine) if words else cosine
        return [self._passage(reader, int(matrix.ids[i]), float(scored[i])) for i in _best(scored, allowed, k)]

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

    def _load_matrix(self, reader: sqlite3.Connection) -> _Matrix:
        reader.execute("SELECT 1 FROM meta").fetchone()  # the read that starts the transaction: what follows is of one moment
        [data_version] = reader.execute("PRAGMA data_version").fetchone()
        if self._matrix is None or self._matrix.data_version != data_version:
            rows = reader.execute(
                "SELECT passages.id, source_id, vector FROM passages JOIN sources ON sources.id = source_id ORDER BY source, start, end"
            ).fetchall()
            ids = np.array([row[0] for row in rows], dtype=np.int64)
            width = max((len(row[2]) for row in rows if row[2] is not None), default=0)
            blobs = b"".join(row[2] or bytes(width) for row in rows)
            self._matrix = _Matrix(
                data_version=data_version,
                ids=ids,
                source_ids=np.array([row[1] for row in rows], dtype=np.int64),
                vectors=np.frombuffer(blobs, dtype="<f4").reshape(len(rows), width // 4),
                by_id=np.argsort(ids),
            )
        return self._matrix

    # Writing

    def _replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        spans = {kind: [list(asdict(span).values()) for span in getattr(document, kind)] for kind in ("sections", "pages", "lines")}
        with self._write() as writer:
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
                vector = None if vectors is None else np.asarray(vectors[i], dtype="<f4").tobytes()
                passage_id = writer.execute(
                    "INSERT INTO passages (source_id, start, end, section, page, line, vector) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (source_id, passage.start, passage.end, passage.section, passage.page, passage.line, vector),
                ).lastrowid
                writer.execute("INSERT INTO words (rowid, section, text) VALUES (?, ?, ?)", (passage_id, passage.section, passage.text))

    def _remove(self, source: str) -> None:
        with self._write() as writer:
            writer.execute("DELETE FROM sources WHERE source = ?", (source,))

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
        connection = self._connect()
        try:
            if self._is_blank(connection):
                connection.close()
                return None
        except sqlite3.OperationalError as error:
            connection.close()
            raise StoreError(
                f"{self.path} cannot be opened: {error}; SQLite writes its log beside it, so copy the index to where you may write"
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_writer(self) -> sqlite3.Connection:
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path} cannot be made: there is no folder {self.path.parent}")
        connection = self._connect()
        try:
            if self._is_blank(connection):
                connection.execute("PRAGMA journal_mode = WAL")
                with _transaction(connection, "BEGIN IMMEDIATE"):
                    if self._is_blank(connection):  # still: another process may have been faster
                        for statement in _statements(_SCHEMA):
                            connection.execute(statement)
                        connection.execute("INSERT INTO meta VALUES ('pipeline', ?)", (self.pipeline,))
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")  # with a write-ahead log: a killed process loses nothing
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.path} cannot be opened: {error}") from None

    def _is_blank(self, connection: sqlite3.Connection) -> bool:
        """Whether the database is still without any table. One that is neither blank nor an index that we may use is refused."""
        try:
            [application_id] = connection.execute("PRAGMA application_id").fetchone()
            [version] = connection.execute("PRAGMA user_version").fetchone()
            [num_tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if application_id == 0 and num_tables == 0:
                return True
            if application_id != _APPLICATION_ID:
                raise StoreError(self._not_ours())
            if version > _SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} was made by a newer Tripod (schema {version}; this one reads {_SCHEMA_VERSION}); "
                    "upgrade Tripod, or make the index anew in another file"
                )
            self._check_makers(connection)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self._not_ours()} ({error})") from None
        return False

    def _not_ours(self) -> str:
        return f"{self.path} is not an index of Tripod's; it is left as it is: name another file"

    def _check_makers(self, connection: sqlite3.Connection) -> None:
        made_by = dict(connection.execute("SELECT key, value FROM meta"))
        for maker, ours in (("pipeline", self.pipeline), ("embedder", self.embedder)):
            theirs = made_by.get(maker)
            if ours is not None and theirs is not None and ours != theirs:
                raise StoreError(
                    f"{self.path} was made with the {maker} {theirs!r}, and is opened with {ours!r}; what they make cannot be "
                    f"compared: open it with the same {maker}, or make the index anew in another file"
                )


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


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit the transaction that they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _num_matches(reader: sqlite3.Connection, words: list[str]) -> int:
    """How many passages hold any of the words."""
    if not words:
        return 0
    [number] = reader.execute("SELECT count(*) FROM words WHERE words MATCH ?", (expression(words),)).fetchone()
    return int(number)


def _bm25_bound(reader: sqlite3.Connection, words: list[str], num_passages: int) -> float:
    """What BM25 would give to a passage that repeated every word of the query without end."""
    bound = 0.0
    for word in words:
        num_matches = _num_matches(reader, [word])
        # FTS5's idf, which is never below this small number. A word that stands nowhere counts too: it was asked for.
        bound += max(math.log((num_passages - num_matches + 0.5) / (num_matches + 0.5)), 1e-6) * (_K1 + 1)
    return bound


def _best(scores: Vectors, allowed: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """Positions of the k largest allowed scores, best first; of equals, the earlier."""
    candidates = np.flatnonzero(allowed)
    if len(candidates) > k:
        threshold = np.partition(scores[candidates], len(candidates) - k)[len(candidates) - k]
        candidates = candidates[scores[candidates] >= threshold]
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order][:k]
