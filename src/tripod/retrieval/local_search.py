"""Scores of passages by words and by meaning, where the words stand in FTS5 and the vectors in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tripod.retrieval import fts5
from tripod.retrieval.fusion import fuse
from tripod.retrieval.passage_table import PassageTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tripod.protocols import Vectors


def exact_search(
    connection: sqlite3.Connection,
    table: PassageTable,
    terms: Sequence[str],
    vector: Vectors | None,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> list[tuple[int, float]]:
    """The ids and scores of the k best passages, every passage looked at.

    Args:
        connection: holds the words.
        terms: to look for; none, if the vector alone decides.
        vector: [dim]; None, or no vectors in the table: the words alone decide.
        k: at most so many.
        allowed: [R] rows of the table that may be found; all, if None.
    """
    if allowed is None:
        allowed = table.present()
    bm25 = np.zeros(table.shape, dtype=np.float32)
    if terms:
        ids, scores = fts5.matches(connection, terms)
        bm25[table.rows_of(ids)] = scores
    if vector is None or table.dim == 0:
        scored, allowed = bm25, allowed & (bm25 > 0)
    else:
        cosine = table.cosine(vector)
        scored = fuse(bm25, fts5.bound(fts5.counts_of(connection, terms).values(), table.num_passages), cosine) if terms else cosine
    return [(int(table.ids[row]), float(scored[row])) for row in table.best(scored, allowed, k)]
