"""Approximate search of many vectors: a usearch index in a file beside the SQLite file, made from it and never the truth.

`meta` in the SQLite file names the file of the usearch index and the change up to which it knows the sources; what came later is
searched exactly beside it, and what it finds is scored by the vectors in the SQLite file. Without the file, or without usearch, vectors
are searched exactly.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from tripod.durable_files import durable_file
from tripod.retrieval.vector_format import VectorFormat, decode, decode_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tripod.protocols import Vectors

ANN_THRESHOLD = 100_000  # vectors; below, they are searched exactly
# HNSW's parameters (Malkov and Yashunin 2018, arXiv:1603.09320); `benchmarks.retrieval.scale` measures recall with them. With half of each
# it was 0.85 of the ten best among 200,000 vectors in 400 clusters: a search that comes to a wrong cluster must see beyond all of it.
_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 32, 256, 512
_STALE_SHARE = 0.05  # of the passages; more that are new or gone are taken into the file, fewer are searched beside it
_BATCH = 16_384  # vectors that are read at once


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What `meta` says of the usearch file."""

    file: str  # its name, beside the SQLite file
    change: int  # the last change that it knows
    num_vectors: int


def sidecar_of(made_by: dict[str, str]) -> Sidecar | None:
    return Sidecar(**json.loads(made_by["ann"])) if "ann" in made_by else None


class AnnIndex:
    """The usearch file, mapped into memory. Keys are ids of passages."""

    def __init__(self, index: Any, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self._index = index
        self._index.expansion_search = _EXPANSION_SEARCH

    @classmethod
    def open(cls, database: Path, sidecar: Sidecar | None) -> AnnIndex | None:
        """None where there is none, or where it cannot be used: then the search is exact."""
        if sidecar is None or find_spec("usearch") is None:
            return None
        from usearch.index import Index

        path = database.with_name(sidecar.file)
        try:
            index = Index.restore(str(path), view=True) if path.is_file() else None
        except (RuntimeError, ValueError, OSError):
            index = None  # damaged
        return cls(index, sidecar) if index is not None and len(index) == sidecar.num_vectors else None

    def nearest(self, vector: Vectors, number: int) -> NDArray[np.int64]:
        """The ids of about the nearest passages, nearest first."""
        found = self._index.search(np.asarray(vector, dtype=np.float32), min(number, len(self._index)))
        return np.asarray(found.keys).astype(np.int64)


def needs_update(reader: sqlite3.Connection, database: Path, threshold: int) -> bool:
    """Whether there are enough vectors, and enough that the file does not know."""
    if find_spec("usearch") is None:
        return False
    [num_vectors] = reader.execute("SELECT count(*) FROM passages").fetchone()
    if num_vectors < threshold:
        return False
    sidecar = sidecar_of(dict(reader.execute("SELECT key, value FROM meta")))
    if sidecar is None or not database.with_name(sidecar.file).is_file():
        return True
    [oldest] = reader.execute("SELECT coalesce(min(number), 1) FROM changes").fetchone()
    [num_new] = reader.execute(
        "SELECT count(*) FROM passages WHERE source_id IN (SELECT source_id FROM changes WHERE number > ?)", (sidecar.change,)
    ).fetchone()
    num_gone = sidecar.num_vectors + num_new - num_vectors
    return bool(oldest > sidecar.change + 1 or num_new + num_gone > _STALE_SHARE * num_vectors)


def build(reader: sqlite3.Connection, database: Path, form: VectorFormat) -> Sidecar | None:
    """Write a new file with all vectors of the moment that `reader` sees; None if they have no length yet."""
    from usearch.index import Index

    [change] = reader.execute("SELECT coalesce(max(number), 0) FROM changes").fetchone()
    index: Any = None
    for ids, contents in _batches(reader):
        if index is None:
            index = Index(
                ndim=len(decode(contents[0], form)),
                metric="ip",
                dtype="i8" if form == "int8" else "f16",  # what it finds is scored again, by the vectors that are kept
                connectivity=_CONNECTIVITY,
                expansion_add=_EXPANSION_ADD,
                expansion_search=_EXPANSION_SEARCH,
            )
        raw, scales = decode_all(contents, form)
        index.add(ids, raw.astype(np.float32) * scales[:, None])
    if index is None:
        return None
    sidecar = Sidecar(file=f"{database.name}.{uuid4().hex[:12]}.usearch", change=change, num_vectors=len(index))
    with durable_file(database.with_name(sidecar.file)) as stream:
        stream.write(index.save())
    return sidecar


def record(writer: sqlite3.Connection, database: Path, sidecar: Sidecar) -> None:
    """Name the new file in `meta`, and remove those of before. A reader that has one mapped keeps it."""
    writer.execute("INSERT OR REPLACE INTO meta VALUES ('ann', ?)", (json.dumps(asdict(sidecar)),))
    for path in database.parent.glob(f"{database.name}.*.usearch"):
        if path.name != sidecar.file:
            path.unlink(missing_ok=True)


def _batches(reader: sqlite3.Connection) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    rows = reader.execute("SELECT id, vector FROM passages WHERE vector IS NOT NULL ORDER BY id")
    while batch := rows.fetchmany(_BATCH):
        yield np.array([row[0] for row in batch], dtype=np.int64), [row[1] for row in batch]
