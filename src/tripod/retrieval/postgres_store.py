"""The store on a PostgreSQL server: words in tsvectors, vectors in pgvector, and an HNSW index where there are many.

A search sees the index as it was at one moment (repeatable read); a source is replaced in one transaction, and writers take turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from tripod.documents import Document, Passage, SourceState, StoredSource, StoreStats
from tripod.errors import ConfigError, MissingExtraError, StoreError
from tripod.filters import Filter, Where, parse
from tripod.retrieval import postgres_schema, postgres_vector, postgres_words
from tripod.retrieval.postgres_check import find_damage, make_words_anew
from tripod.retrieval.postgres_rows import (
    delete_source,
    has_ann,
    has_tables,
    insert_source,
    meta,
    one_row,
    read_document,
    read_passages,
    read_source,
    read_sources,
    read_stats,
    set_meta,
    vectors_of,
)
from tripod.retrieval.postgres_search import best_passages
from tripod.retrieval.query import terms
from tripod.retrieval.vector_format import VectorFormat

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

    from tripod.protocols import Vectors

T = TypeVar("T")

ANN_THRESHOLD = 100_000  # vectors; below, they are searched exactly
_MAX_CONNECTIONS = 8
_CONNECT_TIMEOUT_S = 10
_BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another one
_HNSW = "WITH (m = 24, ef_construction = 128)"
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
        except ImportError:
            raise MissingExtraError("psycopg", "postgres", "an index in PostgreSQL") from None
        address, _, schema = location.partition("#")
        schema = schema or "tripod"
        name = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", location)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise ConfigError(f"#{schema} is no plain name of a schema; give lower-case letters, digits and underscores")
        if vectors is not None:
            postgres_vector.type_of(vectors)
        options: dict[str, Any] = {"options": f"-c search_path={schema},public", "connect_timeout": _CONNECT_TIMEOUT_S}
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
        return await self._read(lambda connection: read_stats(connection, self.schema), None)

    async def sources(self, where: Where | None = None) -> dict[str, SourceState]:
        wanted = parse(where or {})
        return await self._read(lambda connection: read_sources(connection, wanted), {})

    async def document(self, source: str) -> Document | None:
        found = await self._read(lambda connection: read_document(connection, source), None)
        return found[1] if found is not None else None

    async def read(self, source: str) -> StoredSource | None:
        return await self._read(lambda connection: read_source(connection, source), None)

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
        await self._write(lambda connection: delete_source(connection, source))

    async def settle(self) -> None:
        """Make the HNSW index, once there are many vectors; from then on PostgreSQL keeps it."""
        if await self._read(self._needs_ann, False):
            await self._write(self._make_ann)
        if await self._read(lambda connection: True, False):
            await self._write(lambda connection: connection.execute("ANALYZE sources; ANALYZE passages"))

    async def check(self) -> list[str]:
        return await self._read(find_damage, [])

    async def repair(self) -> None:
        await self._write(make_words_anew)

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
                    self._is_there = has_tables(connection, self.schema)
                    if not self._is_there:
                        yield None
                        return
                yield connection
        except psycopg.Error as error:
            raise StoreError(f"{self.name} cannot be read: {str(error).strip()}") from error

    def _search(self, connection: Connection, wanted: list[str], vector: Vectors | None, k: int, only: Filter | None) -> list[Passage]:
        made_by = meta(connection)
        if vector is not None:
            self._check_makers(made_by)  # another process may have brought the first vectors after we opened the index
            if "dim" not in made_by:
                vector = None  # or have filled it without any
            else:
                postgres_vector.register(connection, vectors_of(made_by))
        return read_passages(connection, best_passages(connection, wanted, vector, k, only))

    # Writing

    async def _write(self, write: Callable[[Connection], object]) -> None:
        def in_thread() -> None:
            import psycopg

            try:
                with self._pool.connection() as connection, self._turn(connection), connection.transaction():
                    self._make_tables(connection)
                    write(connection)
            except psycopg.errors.LockNotAvailable as error:
                raise StoreError(
                    f"{self.name}: another process has been writing for {_BUSY_TIMEOUT_S:g} s; wait for it to end, then try again"
                ) from error
            except psycopg.Error as error:
                raise StoreError(f"{self.name} cannot be written: {str(error).strip()}; what was written before is kept") from error

        await anyio.to_thread.run_sync(in_thread, limiter=self._limiter)

    @contextmanager
    def _turn(self, connection: Connection) -> Iterator[None]:
        """Writers take turns, as in a file: the totals would make them wait for each other anyway.

        The lock is taken before the transaction begins, because a transaction may not see tables that came while it waited.
        """
        import psycopg

        key = f"tripod {self.schema}"
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_BUSY_TIMEOUT_S:g}s'")
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (key,))
        try:
            yield
        finally:
            with suppress(psycopg.Error):  # of a connection that is lost the server takes the lock back by itself
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (key,))

    def _make_tables(self, connection: Connection) -> None:
        if self._is_there:
            return
        version = self._check_version(connection) if has_tables(connection, self.schema) else 0
        if version == postgres_schema.VERSION:
            return
        if version == 0 and self.pipeline is None:
            raise StoreError(f"there is no index at {self.name}")
        postgres_schema.migrate(connection, self.schema, version)
        if version == 0:
            set_meta(connection, pipeline=str(self.pipeline), vectors=self._wanted_vectors or "f32")

    def _replace(
        self, connection: Connection, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState
    ) -> None:
        if vectors is not None:
            self._claim_embedder(connection, int(vectors.shape[1]))
        delete_source(connection, document.source)
        insert_source(connection, document, passages, vectors, state)

    def _claim_embedder(self, connection: Connection, dim: int) -> None:
        """The first vectors decide whose index this is; two writers may have opened it while it held none."""
        if self.embedder is None:
            raise StoreError("vectors were given to a store that was opened without an embedder's fingerprint")
        made_by = meta(connection)
        self._check_makers(made_by)
        form = vectors_of(made_by)
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
            connection.execute(f"ALTER TABLE passages ADD COLUMN vector {postgres_vector.type_of(form)}({dim})")
            set_meta(connection, embedder=self.embedder, dim=str(dim))
        postgres_vector.register(connection, form)

    def _needs_ann(self, connection: Connection) -> bool:
        made_by = meta(connection)
        limit = _HALFVEC_HNSW if made_by["vectors"] == "f16" else _VECTOR_HNSW
        if not 0 < int(made_by.get("dim", 0)) <= limit or has_ann(connection):
            return False
        [num_passages] = one_row(connection, "SELECT num_passages FROM totals")
        return bool(num_passages >= self.ann_threshold)

    def _make_ann(self, connection: Connection) -> None:
        operators = f"{postgres_vector.type_of(vectors_of(meta(connection)))}_ip_ops"
        connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
        connection.execute(f"CREATE INDEX IF NOT EXISTS passages_vector ON passages USING hnsw (vector {operators}) {_HNSW}")

    # Who made it

    def _check_version(self, connection: Connection) -> int:
        made_by = meta(connection)
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
