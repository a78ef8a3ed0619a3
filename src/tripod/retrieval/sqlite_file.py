"""The SQLite file of an index: made, migrated, recognised and opened for reading and writing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tripod.errors import StoreError
from tripod.retrieval import sqlite_schema
from tripod.retrieval.sqlite_where import add_functions
from tripod.retrieval.vector_format import FORMATS, VectorFormat

BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another one


class SqliteFile:
    """Where the index is, or, after the first write, will be; and who may use it.

    Args:
        path: the file. Its folder must exist.
        pipeline: names what makes passages of files; an index made by another one is refused. None: whatever it was, but none is made.
        embedder: the embedder's fingerprint; None if there is none. An index made by another one is refused.
        vectors: the format that vectors are kept in; None: that of the index, and float32 in a new one.
    """

    def __init__(self, path: Path, *, pipeline: str | None, embedder: str | None, vectors: VectorFormat | None) -> None:
        self.path = path
        self.pipeline = pipeline
        self.embedder = embedder
        self._wanted_vectors = vectors

    def open_reader(self) -> sqlite3.Connection | None:
        """A connection to an index; None where nothing was ever written."""
        if not self.path.exists():
            return None
        if self._is_frozen():
            # Nobody can change it, so it needs no log beside it, which could not be written.
            connection = self.connect("?mode=ro&immutable=1")
        else:
            connection = self.connect()
        try:
            version = self._version(connection)
            if version == 0:
                connection.close()
                return None
            if version < sqlite_schema.VERSION:
                self.open_writer().close()
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

    def open_writer(self) -> sqlite3.Connection:
        if not self.path.parent.is_dir():
            raise StoreError(f"{self.path} cannot be made: there is no folder {self.path.parent}")
        connection = self.connect()
        try:
            if self._version(connection) < sqlite_schema.VERSION:
                connection.execute("PRAGMA journal_mode = WAL")
                with transaction(connection, "BEGIN IMMEDIATE"):
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

    def connect(self, options: str = "") -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}{options}",
                timeout=BUSY_TIMEOUT_S,
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
            self.check_makers(connection)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self._not_ours()} ({error})") from None
        return int(version)

    def _not_ours(self) -> str:
        return f"{self.path} is not an index of Tripod's; it is left as it is: name another file"

    def check_makers(self, connection: sqlite3.Connection) -> dict[str, str]:
        made_by = meta(connection)
        for maker, ours in (("pipeline", self.pipeline), ("embedder", self.embedder), ("vectors", self._wanted_vectors)):
            theirs = made_by.get(maker)
            if ours is not None and theirs is not None and ours != theirs:
                raise StoreError(
                    f"{self.path} was made with the {maker} {theirs!r}, and is opened with {ours!r}; what they make cannot be "
                    f"compared: open it with the same {maker}, or make the index anew in another file"
                )
        return made_by

    def claim_embedder(self, writer: sqlite3.Connection) -> None:
        """The first vectors decide whose index this is; two writers may have opened it while it held none."""
        if self.embedder is None:
            raise StoreError("vectors were given to a store that was opened without an embedder's fingerprint")
        writer.execute("INSERT OR IGNORE INTO meta VALUES ('embedder', ?)", (self.embedder,))
        self.check_makers(writer)


def meta(connection: sqlite3.Connection) -> dict[str, str]:
    """Who made the index, and how."""
    return dict(connection.execute("SELECT key, value FROM meta"))


def vectors_of(made_by: dict[str, str]) -> VectorFormat:
    """The format that vectors are kept in."""
    [form] = [form for form in FORMATS if form == made_by.get("vectors", "f32")]
    return form


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.OperationalError):  # the failure may have ended the transaction already
            connection.execute("ROLLBACK")
        raise
