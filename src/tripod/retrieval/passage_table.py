"""All passages of an index in memory, with their vectors: the exact search, and the order of what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tripod.retrieval.vector_format import VectorFormat, decode_all, dtype_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tripod.protocols import Vectors

# Numbers that are widened to float32, and multiplied, at once: so that a small format stays small, and so few that BLAS does it on the
# calling thread. Its own threads spin for some 20 ms after each product, and take the processors from whoever embeds the next question.
_CHUNK_NUMBERS = 400_000


class PassageTable:
    """Rows of passages that come and go a source at a time; a row that went is free for the next.

    Args:
        form: how vectors are kept here.
    """

    def __init__(self, form: VectorFormat) -> None:
        self.form = form
        self.num_passages = 0
        self._capacity = 0  # R rows, of which the free ones have id -1
        self.ids = np.zeros(0, dtype=np.int64)  # [R]
        self.source_ids = np.zeros(0, dtype=np.int64)  # [R]
        self._starts = np.zeros(0, dtype=np.int64)  # [R]
        self._vectors = np.zeros((0, 0), dtype=dtype_of(form))  # [R, dim]; [R, 0] if there are none; zeros for a passage without one
        self._scales = np.zeros(0, dtype=np.float32)  # [R]
        self._free: list[int] = []
        self._names: dict[int, str] = {}  # source id -> its name
        self._rows: dict[int, NDArray[np.int64]] = {}  # source id -> its rows
        self._by_id: NDArray[np.int64] | None = None  # rows in the order of `ids`; made when it is needed

    @property
    def dim(self) -> int:
        """0 while no passage has a vector."""
        return int(self._vectors.shape[1])

    @property
    def shape(self) -> tuple[int]:
        return (self._capacity,)

    def add(self, source_id: int, source: str, ids: Sequence[int], starts: Sequence[int], vectors: Sequence[bytes | None]) -> None:
        """The passages of a source, with each one's encoded vector."""
        rows = self._take(len(ids))
        self.ids[rows], self.source_ids[rows], self._starts[rows] = ids, source_id, starts
        present = [i for i, vector in enumerate(vectors) if vector is not None]
        if present:
            kept, scales = decode_all([vector for vector in vectors if vector is not None], self.form)
            if self.dim == 0:
                self._vectors = np.zeros((self._capacity, kept.shape[1]), dtype=self._vectors.dtype)
            self._vectors[rows[present]], self._scales[rows[present]] = kept, scales
        self._names[source_id], self._rows[source_id] = source, rows
        self.num_passages += len(ids)
        self._by_id = None

    def remove(self, source_id: int) -> None:
        rows = self._rows.pop(source_id, None)
        if rows is None:
            return
        del self._names[source_id]
        self.ids[rows] = self.source_ids[rows] = -1
        self._vectors[rows] = 0
        self._free += rows.tolist()
        self.num_passages -= len(rows)
        self._by_id = None

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where passages stand; all must be here."""
        if self._by_id is None:
            self._by_id = np.argsort(self.ids, kind="stable")
        return self._by_id[np.searchsorted(self.ids, ids, sorter=self._by_id)]

    def of_sources(self, source_ids: Iterable[int]) -> NDArray[np.bool_]:
        """[R], whether a row belongs to one of the sources."""
        return np.isin(self.source_ids, np.fromiter(source_ids, dtype=np.int64))

    def present(self) -> NDArray[np.bool_]:
        """[R], whether a row holds a passage."""
        return self.ids >= 0

    def cosine(self, vector: Vectors) -> Vectors:
        """[R], the product of each row's vector with a vector [dim]."""
        query = np.asarray(vector, dtype=np.float32)
        scores = np.empty(self._capacity, dtype=np.float32)
        num_rows = max(1, _CHUNK_NUMBERS // max(1, self.dim))
        for start in range(0, self._capacity, num_rows):
            part = slice(start, start + num_rows)
            scores[part] = self._vectors[part].astype(np.float32, copy=False) @ query
        return scores if self.form == "f32" else scores * self._scales

    def best(self, scores: Vectors, allowed: NDArray[np.bool_], k: int) -> list[int]:
        """Rows of the k largest allowed scores, best first; of equals, by source, then by place."""
        rows = np.flatnonzero(allowed)
        if len(rows) > k:
            threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= threshold]
        order = sorted(
            rows.tolist(),
            key=lambda row: (-float(scores[row]), self._names[int(self.source_ids[row])], int(self._starts[row]), int(self.ids[row])),
        )
        return order[:k]

    def _take(self, number: int) -> NDArray[np.int64]:
        if number > len(self._free):
            capacity = max(2 * self._capacity, self._capacity + number, 64)
            grown = capacity - self._capacity
            self.ids = np.concatenate([self.ids, np.full(grown, -1)])
            self.source_ids = np.concatenate([self.source_ids, np.full(grown, -1)])
            self._starts = np.concatenate([self._starts, np.zeros(grown, dtype=np.int64)])
            self._scales = np.concatenate([self._scales, np.ones(grown, dtype=np.float32)])
            self._vectors = np.concatenate([self._vectors, np.zeros((grown, self.dim), dtype=self._vectors.dtype)])
            self._free += range(capacity - 1, self._capacity - 1, -1)
            self._capacity = capacity
        return np.array([self._free.pop() for _ in range(number)], dtype=np.int64)
