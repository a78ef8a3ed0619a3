"""The address of an index to its store: where a user moves from one file to a server by another address."""

from __future__ import annotations

import re
from pathlib import Path

from tripod.errors import ConfigError
from tripod.protocols import Store
from tripod.retrieval.memory_store import MemoryStore
from tripod.retrieval.sqlite_store import SqliteStore
from tripod.retrieval.vector_format import VectorFormat

MEMORY = ":memory:"
_SERVERS = ("postgresql://", "postgres://")


async def open_store(location: str, *, pipeline: str | None, embedder: str | None, vectors: VectorFormat | None = None) -> Store:
    """Open the store at an address: a file, `postgresql://...`, or `:memory:`.

    Args:
        location: see `Index`.
        pipeline: names what makes passages of files; None: whatever the index was made by, but none is made.
        embedder: the embedder's fingerprint; None if there is none.
        vectors: the format to keep vectors in; None: the index's own.

    Raises:
        ConfigError: an address of a kind that is not known.
        StoreError: it cannot be opened, or was made by others than the named.
        MissingExtraError: psycopg is needed and not installed.
    """
    if location == MEMORY:
        return MemoryStore(pipeline=pipeline or "", embedder=embedder, vectors=vectors or "f32")
    if location.startswith(_SERVERS):
        from tripod.retrieval.postgres_store import PostgresStore

        return await PostgresStore.open(location, pipeline=pipeline, embedder=embedder, vectors=vectors)
    if "://" in location:
        raise ConfigError(f"{printable(location)} is no address of an index; give a file, postgresql://user@host/database, or {MEMORY}")
    return SqliteStore(Path(location), pipeline=pipeline, embedder=embedder, vectors=vectors)


def is_file(location: str) -> bool:
    """Whether an address means a file on this machine."""
    return "://" not in location and location != MEMORY


def printable(location: str) -> str:
    """The address without a password."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", location)
