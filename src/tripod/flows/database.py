"""The tables of a journal, in SQLite or PostgreSQL: the same statements for both."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias, TypeVar

import anyio
import anyio.to_thread

from tripod.errors import ConfigError, JournalError, MissingExtraError

T = TypeVar("T")
Row: TypeAlias = Sequence[Any]
Execute: TypeAlias = Callable[..., list[Row]]  # (sql with "?", *parameters) -> rows

MEMORY = ":memory:"
_BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another one

# `position` counts the steps of an execution in the order in which they were begun.
_TABLES = """
CREATE TABLE IF NOT EXISTS executions (
    id TEXT PRIMARY KEY, function TEXT NOT NULL, arguments TEXT NOT NULL, fingerprint TEXT NOT NULL, state TEXT NOT NULL,
    result TEXT, error TEXT, owner TEXT, lease_until_s DOUBLE PRECISION, wake_at_s DOUBLE PRECISION, forked_from TEXT,
    created_s DOUBLE PRECISION NOT NULL, updated_s DOUBLE PRECISION NOT NULL
);
CREATE TABLE IF NOT EXISTS steps (
    execution TEXT NOT NULL REFERENCES executions (id) ON DELETE CASCADE, path TEXT NOT NULL, position INTEGER NOT NULL,
    name TEXT NOT NULL, arguments TEXT NOT NULL, is_safe INTEGER NOT NULL, state TEXT NOT NULL, result TEXT, error TEXT,
    num_attempts INTEGER NOT NULL, started_s DOUBLE PRECISION NOT NULL, ended_s DOUBLE PRECISION, PRIMARY KEY (execution, path)
);
CREATE INDEX IF NOT EXISTS executions_by_state ON executions (state, updated_s);
"""


class UnreachableError(JournalError):
    """The database of a journal does not answer now, or is full or broken; what it held, it holds."""


class Database(Protocol):
    """Runs a piece of work in one transaction, and one after the other."""

    def now(self) -> float: ...  # seconds since 1970, by a clock that all workers share

    async def transaction(self, work: Callable[[Execute], T]) -> T: ...

    async def aclose(self) -> None: ...


async def open_database(location: str) -> Database:
    """The tables at an address: a file, `postgresql://...#schema`, or ":memory:"; made where they are not there.

    Raises:
        ConfigError: an address of a kind that is not known.
        JournalError: it cannot be opened.
        MissingExtraError: psycopg is needed and not installed.
    """
    if location.startswith(("postgresql://", "postgres://")):
        return await anyio.to_thread.run_sync(PostgresDatabase, location)
    if "://" in location:
        raise ConfigError(
            f"{location.partition('://')[0]}:// is no address of a journal; give a file, postgresql://user@host/database, or {MEMORY}"
        )
    return SqliteDatabase(location)


class SqliteDatabase:
    """One file. A transaction is on the disk when it has ended: after a power cut too, no effect was done whose intent is not there."""

    def __init__(self, path: str) -> None:
        try:
            self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            if path != MEMORY:
                self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.executescript(_TABLES)
        except sqlite3.Error as error:
            raise JournalError(f"{path} cannot be opened as a journal: {error}; name a file in a folder that is there") from error
        self._path, self._is_in_memory = path, path == MEMORY
        self._limiter, self._lock = anyio.CapacityLimiter(1), threading.Lock()

    def now(self) -> float:
        return time.time()

    async def transaction(self, work: Callable[[Execute], T]) -> T:
        if self._is_in_memory:
            return self._do(work)
        return await anyio.to_thread.run_sync(self._do, work, limiter=self._limiter)

    async def aclose(self) -> None:
        with self._lock:
            self._connection.close()

    def _do(self, work: Callable[[Execute], T]) -> T:
        try:
            with self._lock, self._begun():
                return work(lambda sql, *parameters: self._connection.execute(sql, parameters).fetchall())
        except sqlite3.Error as error:
            raise UnreachableError(f"the journal {self._path} cannot be read or written: {error}; mend that, then resume") from error

    @contextmanager
    def _begun(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.OperationalError):  # the failure may have ended the transaction already
                self._connection.execute("ROLLBACK")
            raise


class PostgresDatabase:
    """One schema of a PostgreSQL database; after the server went away, the next transaction connects again."""

    def __init__(self, location: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise MissingExtraError("psycopg", "postgres", "a journal in PostgreSQL") from None
        self._address, _, schema = location.partition("#")
        self._schema = schema or "tripod"
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self._schema):
            raise ConfigError(f"#{schema} is no plain name of a schema; give lower-case letters, digits and underscores")
        self._psycopg = psycopg
        self._connection: Any = None
        self._ahead_s = 0.0  # of this machine's clock: the server's, by which workers on several machines agree when a lease is over
        self._limiter, self._lock = anyio.CapacityLimiter(1), threading.Lock()
        self._do(self._make_tables)

    def now(self) -> float:
        return time.time() + self._ahead_s

    async def transaction(self, work: Callable[[Execute], T]) -> T:
        return await anyio.to_thread.run_sync(self._do, work, limiter=self._limiter)

    async def aclose(self) -> None:
        with self._lock:
            if self._connection is not None:
                await anyio.to_thread.run_sync(self._connection.close)

    def _make_tables(self, execute: Execute) -> None:
        execute("SELECT pg_advisory_xact_lock(7471)")  # two that make the same tables at once would collide
        execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
        for statement in _TABLES.split(";\n"):
            if statement.strip():
                execute(statement)

    def _do(self, work: Callable[[Execute], T]) -> T:
        with self._lock:
            try:
                if self._connection is None or self._connection.closed:
                    options = f"-c search_path={self._schema}"
                    self._connection = self._psycopg.connect(self._address, options=options, connect_timeout=10, autocommit=True)
                with self._connection.transaction():
                    [[server_s]] = self._execute("SELECT extract(epoch FROM clock_timestamp())::float8")
                    self._ahead_s = server_s - time.time()
                    return work(self._execute)
            except self._psycopg.Error as error:
                name = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", self._address)
                raise UnreachableError(f"the journal in {name} does not answer: {str(error).strip()}") from error

    def _execute(self, sql: str, *parameters: Any) -> list[Row]:
        cursor = self._connection.execute(sql.replace("?", "%s"), parameters)
        return cursor.fetchall() if cursor.description is not None else []
