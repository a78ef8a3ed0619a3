"""The store on a PostgreSQL server: words in tsvectors, vectors in pgvector, and an HNSW index where there are many.

A search sees the index as it was at one moment (repeatable read); a source is replaced in one transaction, and writers take turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from tripod.documents import Document, Line, Page, Passage, Section, SourceState, StoredSource, StoreStats
from tripod.errors import ConfigError, MissingExtraError, StoreError
from tripod.filters import Filter, Where, instant, parse
from tripod.retrieval import postgres_schema, postgres_vector, postgres_words
from tripod.retrieval.postgres_search import best_passages
from tripod.retrieval.postgres_where import condition, with_nul, without_nul
from tripod.retrieval.query import terms
from tripod.retrieval.vector_format import FORMATS, VectorFormat

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

    from tripod.protocols import Vectors

T = TypeVar("T")

ANN_THRESHOLD = 100_000  # vectors; below, they are searched exactly
_MAX_CONNECTIONS = 8
_CONNECT_TIMEOUT_S = 10
_BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another one
_HALFVEC_HNSW, _VECTOR_HNSW = 4000, 2000  # dimensions that pgvector's HNSW takes at most


class PostgresStore:
    """A `Store` in one schema of a PostgreSQL database; made at the first write.

    Open it with `PostgresStore.open`. The role needs the right to create a schema, and, unless somebody did it before, the extension
    `vector` (a trusted extension: the owner of the database may).
    """

    def __init__(
        self, pool: ConnectionPool, *, schema: str, name: str, pipeline: str | None, embedder: str | None, vectors: VectorFormat | None
    ) -> None:
        self.name = name
        self.schema = schema
        self.pipeline = pipeline
        self.embedder = embedder
        self.ann_threshold = ANN_THRESHOLD
        self._wanted_vectors = vectors
        self._pool = pool
        self._limiter = anyio.CapacityLimiter(_MAX_CONNECTIONS)
        self._is_there = False  # once the tables were seen, nobody looks for them again

    @classmethod
    async def open(cls, location: str, *, pipeline: str | None, embedder: str | None, vectors: VectorFormat | None = None) -> PostgresStore:
        """Connect to `postgresql://user@host/database`, and after a "#" the schema ("tripod", if it is left out).

        Raises:
            ConfigError: a schema that is no plain name.
            StoreError: no connection, or an index of a newer version or of others than the named.
            MissingExtraError: psycopg is not installed.
        """
        return await anyio.to_thread.run_sync(cls._open, location, pipeline, embedder, vectors)

    @classmethod
    def _open(cls, location: str, pipeline: str | None, embedder: str | None, vectors: VectorFormat | None) -> PostgresStore:
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError as error:
            raise MissingExtraError(error.name or "psycopg", "postgres", "an index in PostgreSQL") from None
        address, _, schema = location.partition("#")
        schema = schema or "tripod"
        name = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", location)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise ConfigError(f"#{schema} is no plain name of a schema; give lower-case letters, digits and underscores")
        if vectors is not None:
            postgres_vector.type_of(vectors)
        options = {"options": f"-c search_path={schema},public", "connect_timeout": _CONNECT_TIMEOUT_S}
        pool: ConnectionPool | None = None
        try:
            psycopg.connect(address, **options).close()  # its error tells more than the pool's
            pool = ConnectionPool(
                address,
                min_size=1,
                max_size=_MAX_CONNECTIONS,
                kwargs=options,
                timeout=_CONNECT_TIMEOUT_S,
                check=ConnectionPool.check_connection,
                open=True,
            )
            store = cls(pool, schema=schema, name=name, pipeline=pipeline, embedder=embedder, vectors=vectors)
            with store._reading() as connection:
                if connection is not None:
                    store._check_version(connection)
        except psycopg.Error as error:
            if pool is not None:
                pool.close()
            raise StoreError(f"{name} cannot be opened: {str(error).strip()}") from error
        except BaseException:
            if pool is not None:
                pool.close()
            raise
        return store

    async def stats(self) -> StoreStats | None:
        return await self._read(self._stats, None)

    async def sources(self, where: Where | None = None) -> dict[str, SourceState]:
        wanted = parse(where or {})
        return await self._read(lambda connection: self._sources(connection, wanted), {})

    async def document(self, source: str) -> Document | None:
        found = await self._read(lambda connection: self._document(connection, source), None)
        return found[1] if found is not None else None

    async def read(self, source: str) -> StoredSource | None:
        return await self._read(lambda connection: self._read_source(connection, source), None)

    async def search(self, text: str | None, vector: Vectors | None, *, k: int, where: Where | None = None) -> list[Passage]:
        wanted = terms(text) if text is not None else []
        only = parse(where) if where else None
        found = await self._read(lambda connection: self._search(connection, wanted, vector, k, only), None)
        if found is None:
            raise StoreError(f"there is no index at {self.name}; make it with sync")
        return found

    async def count(self, words: Sequence[str]) -> list[int]:
        return await self._read(lambda connection: postgres_words.count_words(connection, words), [0] * len(words))

    async def replace(self, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState) -> None:
        await self._write(lambda connection: self._replace(connection, document, passages, vectors, state))

    async def remove(self, source: str) -> None:
        await self._write(lambda connection: self._remove(connection, source))

    async def settle(self) -> None:
        """Make the HNSW index, once there are many vectors; from then on PostgreSQL keeps it."""
        if await self._read(self._needs_ann, False):
            await self._write(self._make_ann)
        if await self._read(lambda connection: True, False):
            await self._write(lambda connection: connection.execute("ANALYZE sources; ANALYZE passages"))

    async def check(self) -> list[str]:
        return await self._read(self._check, [])

    async def repair(self) -> None:
        await self._write(self._repair)

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._pool.close)

    # Reading

    async def _read(self, read: Callable[[Connection], T], when_empty: T) -> T:
        """What `read` makes of one moment of the index; `when_empty` while nothing was ever written."""

        def in_thread() -> T:
            with self._reading() as connection:
                return when_empty if connection is None else read(connection)

        return await anyio.to_thread.run_sync(in_thread, limiter=self._limiter)

    @contextmanager
    def _reading(self) -> Iterator[Connection | None]:
        import psycopg

        try:
            with self._pool.connection() as connection, connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                if not self._is_there:
                    self._is_there = _has_tables(connection, self.schema)
                    if not self._is_there:
                        yield None
                        return
                yield connection
        except psycopg.Error as error:
            raise StoreError(f"{self.name} cannot be read: {str(error).strip()}") from error

    def _stats(self, connection: Connection) -> StoreStats:
        made_by = _meta(connection)
        [num_sources, num_unembedded] = _row(connection, "SELECT count(*), count(*) FILTER (WHERE NOT is_embedded) FROM sources")
        [num_passages] = _row(connection, "SELECT num_passages FROM totals")
        [num_vectors] = _row(connection, "SELECT count(*) FROM passages JOIN sources ON sources.id = source_id WHERE is_embedded")
        [num_bytes] = _row(
            connection,
            "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
            self.schema,
        )
        return StoreStats(
            num_sources=num_sources,
            num_passages=num_passages,
            num_vectors=num_vectors,
            num_unembedded=num_unembedded,
            num_bytes=num_bytes,
            dim=int(made_by.get("dim", 0)),
            vectors=made_by["vectors"],
            pipeline=made_by["pipeline"],
            embedder=made_by.get("embedder"),
            approximate="HNSW, by pgvector" if _has_ann(connection) else None,
        )

    def _sources(self, connection: Connection, wanted: Filter) -> dict[str, SourceState]:
        where, parameters = condition(wanted)
        rows = connection.execute(
            f"SELECT source, digest, root, size, mtime_ns, is_embedded FROM sources WHERE {where} ORDER BY source",  # type: ignore[arg-type]
            parameters,
        )
        return {with_nul(row[0]): _state(*row[1:]) for row in rows}

    def _document(self, connection: Connection, source: str) -> tuple[int, Document] | None:
        row = connection.execute(
            "SELECT id, title, text, spans, metadata FROM sources WHERE source = %s", (without_nul(source),)
        ).fetchone()
        if row is None:
            return None
        source_id, title, text, spans, metadata = row
        kinds = json.loads(spans)
        return source_id, Document(
            source=source,
            text=with_nul(text),
            title=with_nul(title),
            sections=tuple(Section(*span) for span in kinds["sections"]),
            pages=tuple(Page(*span) for span in kinds["pages"]),
            lines=tuple(Line(*span) for span in kinds["lines"]),
            metadata=json.loads(metadata),
        )

    def _read_source(self, connection: Connection, source: str) -> StoredSource | None:
        found = self._document(connection, source)
        if found is None:
            return None
        source_id, document = found
        made_by = _meta(connection)
        state = _row(connection, "SELECT digest, root, size, mtime_ns, is_embedded FROM sources WHERE id = %s", source_id)
        column = "NULL"
        if "dim" in made_by:
            postgres_vector.register(connection, _format(made_by))
            column = "vector"
        with connection.cursor(binary=True) as cursor:
            rows = cursor.execute(
                f"SELECT start_at, end_at, section, text, page, line, {column} FROM passages WHERE source_id = %s "  # type: ignore[arg-type]
                "ORDER BY start_at, end_at, id",
                (source_id,),
            ).fetchall()
        vectors = [row[6] for row in rows if row[6] is not None]
        return StoredSource(
            document=document,
            passages=tuple(_passage(source, document.metadata, *row[:6]) for row in rows),
            vectors=np.array(vectors, dtype=np.float32) if vectors else None,
            state=_state(*state),
        )

    def _search(self, connection: Connection, wanted: list[str], vector: Vectors | None, k: int, only: Filter | None) -> list[Passage]:
        made_by = _meta(connection)
        if vector is not None:
            self._check_makers(made_by)  # another process may have brought the first vectors after we opened the index
            if "dim" not in made_by:
                vector = None  # or have filled it without any
            else:
                postgres_vector.register(connection, _format(made_by))
        found = best_passages(connection, wanted, vector, k, only)
        rows = connection.execute(
            "SELECT passages.id, source, metadata, start_at, end_at, section, passages.text, page, line FROM passages "
            "JOIN sources ON sources.id = source_id WHERE passages.id = ANY (%s)",
            (list(found),),
        ).fetchall()
        by_id = {row[0]: row[1:] for row in rows}
        passages = []
        for passage_id, score in found.items():
            source, metadata, *rest = by_id[passage_id]
            passages.append(_passage(with_nul(source), json.loads(metadata), *rest, score=score))
        return passages

    def _check(self, connection: Connection) -> list[str]:
        found = []
        for what, sql in _INCONSISTENCIES.items():
            found += [f"{what}: {row[0]}" for row in connection.execute(sql)]  # type: ignore[arg-type]
        if "dim" in _meta(connection):
            sql = "SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE is_embedded != (vector IS NOT NULL)"
            found += [f"passages without a vector in a source that has vectors: {row[0]}" for row in connection.execute(sql)]
        return found

    # Writing

    async def _write(self, write: Callable[[Connection], object]) -> None:
        def in_thread() -> None:
            import psycopg

            try:
                with self._pool.connection() as connection, connection.transaction():
                    connection.execute(f"SET LOCAL lock_timeout = '{_BUSY_TIMEOUT_S:g}s'")
                    # Writers take turns, as in a file: the totals would make them wait for each other anyway.
                    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"tripod {self.schema}",))
                    self._make_tables(connection)
                    write(connection)
            except psycopg.errors.LockNotAvailable as error:
                raise StoreError(
                    f"{self.name}: another process has been writing for {_BUSY_TIMEOUT_S:g} s; wait for it to end, then try again"
                ) from error
            except psycopg.Error as error:
                raise StoreError(f"{self.name} cannot be written: {str(error).strip()}; what was written before is kept") from error

        await anyio.to_thread.run_sync(in_thread, limiter=self._limiter)

    def _make_tables(self, connection: Connection) -> None:
        if self._is_there:
            return
        version = self._check_version(connection) if _has_tables(connection, self.schema) else 0
        if version == postgres_schema.VERSION:
            return
        if version == 0 and self.pipeline is None:
            raise StoreError(f"there is no index at {self.name}")
        postgres_schema.migrate(connection, self.schema, version)
        if version == 0:
            _set_meta(connection, pipeline=str(self.pipeline), vectors=self._wanted_vectors or "f32")

    def _replace(
        self, connection: Connection, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState
    ) -> None:
        if vectors is not None:
            self._claim_embedder(connection, int(vectors.shape[1]))
        self._remove(connection, document.source)
        spans = {kind: [list(asdict(span).values()) for span in getattr(document, kind)] for kind in ("sections", "pages", "lines")}
        times = {name: instant(value) for name, value in {**document.metadata, "source": document.source}.items()}
        [source_id] = _row(
            connection,
            "INSERT INTO sources (source, digest, root, size, mtime_ns, is_embedded, title, text, spans, metadata, fields, instants) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id",
            without_nul(document.source),
            state.digest,
            without_nul(state.root),
            state.size,
            state.mtime_ns,
            vectors is not None,
            without_nul(document.title),
            without_nul(document.text),
            json.dumps(spans),
            json.dumps(dict(document.metadata)),
            json.dumps({_whole(name): _whole(value) if isinstance(value, str) else value for name, value in document.metadata.items()}),
            json.dumps({_whole(name): time for name, time in times.items() if time is not None}),
        )
        columns = "source_id, start_at, end_at, section, text, page, line, num_words, words"
        values = "%s, %s, %s, %s, %s, %s, %s, %s, to_tsvector('words', %s)"
        rows = []
        num_words = 0
        for i, passage in enumerate(passages):
            found = postgres_words.indexed_tokens(passage.section, passage.text)
            num_words += len(found)
            row = [
                source_id,
                passage.start,
                passage.end,
                without_nul(passage.section),
                without_nul(passage.text),
                passage.page,
                passage.line,
            ]
            rows.append([*row, len(found), " ".join(found), *([] if vectors is None else [vectors[i]])])
        if vectors is not None:
            columns, values = f"{columns}, vector", f"{values}, %s"
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany(f"INSERT INTO passages ({columns}) VALUES ({values})", rows)  # type: ignore[arg-type]
        connection.execute("UPDATE totals SET num_passages = num_passages + %s, num_words = num_words + %s", (len(rows), num_words))

    def _remove(self, connection: Connection, source: str) -> None:
        connection.execute(
            """WITH gone AS (
                SELECT count(*) AS passages, coalesce(sum(num_words), 0) AS words FROM passages
                WHERE source_id = (SELECT id FROM sources WHERE source = %s))
            UPDATE totals SET num_passages = totals.num_passages - gone.passages, num_words = totals.num_words - gone.words FROM gone""",
            (without_nul(source),),
        )
        connection.execute("DELETE FROM sources WHERE source = %s", (without_nul(source),))

    def _claim_embedder(self, connection: Connection, dim: int) -> None:
        """The first vectors decide whose index this is; two writers may have opened it while it held none."""
        if self.embedder is None:
            raise StoreError("vectors were given to a store that was opened without an embedder's fingerprint")
        made_by = _meta(connection)
        self._check_makers(made_by)
        form = _format(made_by)
        if "dim" not in made_by:
            import psycopg

            try:
                with connection.transaction():
                    connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
            except psycopg.Error as error:
                raise StoreError(
                    f"{self.name} has no pgvector: {str(error).strip()}; install it on the server, and let its owner run: "
                    "CREATE EXTENSION vector SCHEMA public"
                ) from error
            connection.execute(f"ALTER TABLE passages ADD COLUMN vector {postgres_vector.type_of(form)}({dim})")  # type: ignore[arg-type]
            _set_meta(connection, embedder=self.embedder, dim=str(dim))
        postgres_vector.register(connection, form)

    def _needs_ann(self, connection: Connection) -> bool:
        made_by = _meta(connection)
        limit = _HALFVEC_HNSW if made_by["vectors"] == "f16" else _VECTOR_HNSW
        if not 0 < int(made_by.get("dim", 0)) <= limit or _has_ann(connection):
            return False
        [num_passages] = _row(connection, "SELECT num_passages FROM totals")
        return bool(num_passages >= self.ann_threshold)

    def _make_ann(self, connection: Connection) -> None:
        operators = f"{postgres_vector.type_of(_format(_meta(connection)))}_ip_ops"
        connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
        connection.execute(f"CREATE INDEX IF NOT EXISTS passages_vector ON passages USING hnsw (vector {operators})")  # type: ignore[arg-type]

    def _repair(self, connection: Connection) -> None:
        """Words and totals are made anew from the texts."""
        rows = []
        for passage_id, section, text in connection.execute("SELECT id, section, text FROM passages"):
            found = postgres_words.indexed_tokens(with_nul(section), with_nul(text))
            rows.append((len(found), " ".join(found), passage_id))
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany("UPDATE passages SET num_words = %s, words = to_tsvector('words', %s) WHERE id = %s", rows)
        connection.execute("DELETE FROM totals")
        connection.execute("INSERT INTO totals SELECT count(*), coalesce(sum(num_words), 0) FROM passages")

    # Who made it

    def _check_version(self, connection: Connection) -> int:
        made_by = _meta(connection)
        version = int(made_by["version"])
        if version > postgres_schema.VERSION:
            raise StoreError(
                f"{self.name} was made by a newer Tripod (schema {version}; this one reads {postgres_schema.VERSION}); upgrade Tripod, or "
                "make the index anew in another schema"
            )
        self._check_makers(made_by)
        return version

    def _check_makers(self, made_by: Mapping[str, str]) -> None:
        for maker, ours in (("pipeline", self.pipeline), ("embedder", self.embedder), ("vectors", self._wanted_vectors)):
            theirs = made_by.get(maker)
            if ours is not None and theirs is not None and ours != theirs:
                raise StoreError(
                    f"{self.name} was made with the {maker} {theirs!r}, and is opened with {ours!r}; what they make cannot be "
                    f"compared: open it with the same {maker}, or make the index anew in another schema"
                )


# What must not be found in an index -> where it is found.
_INCONSISTENCIES = {
    "passages that are not what their text says, in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id
        WHERE strpos(sources.text, U&'\\FDD0') = 0 AND passages.text != substr(sources.text, start_at + 1, end_at - start_at)""",
    "passages without words, which no search by words finds, in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE num_words > 0 AND words = ''""",
    "the totals differ from the passages by": """
        SELECT totals.num_passages - count(*) FROM passages, totals GROUP BY totals.num_passages, totals.num_words
        HAVING count(*) != totals.num_passages OR sum(passages.num_words) != totals.num_words""",
}


def _has_tables(connection: Connection, schema: str) -> bool:
    return bool(_row(connection, "SELECT to_regclass(%s) IS NOT NULL", f"{schema}.meta")[0])


def _has_ann(connection: Connection) -> bool:
    return bool(_row(connection, "SELECT to_regclass('passages_vector') IS NOT NULL")[0])


def _meta(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM meta").fetchall())


def _set_meta(connection: Connection, **values: str) -> None:
    for item in values.items():
        connection.execute("INSERT INTO meta VALUES (%s, %s)", item)


def _row(connection: Connection, sql: str, *parameters: object) -> Any:
    row = connection.execute(sql, parameters).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row


def _format(made_by: Mapping[str, str]) -> VectorFormat:
    [form] = [form for form in FORMATS if form == made_by["vectors"]]
    return form


def _state(digest: str, root: str, size: int, mtime_ns: int, is_embedded: bool) -> SourceState:
    return SourceState(digest=digest, root=with_nul(root), size=size, mtime_ns=mtime_ns, is_embedded=is_embedded)


def _passage(
    source: str,
    metadata: Mapping[str, Any],
    start: int,
    end: int,
    section: str,
    text: str,
    page: int | None,
    line: int | None,
    score: float | None = None,
) -> Passage:
    return Passage(
        source=source,
        start=start,
        end=end,
        text=with_nul(text),
        section=with_nul(section),
        page=page,
        line=line,
        metadata=metadata,
        score=score,
    )


def _whole(text: str) -> str:
    """A text that jsonb takes: no NUL, and no half of a surrogate pair, which no filter can ask for."""
    return without_nul(text.encode(errors="replace").decode())
