"""Search among candidates: those that an approximate index and the words name, each scored exactly by words and by meaning."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tripod.filters import Filter
from tripod.retrieval import fts5
from tripod.retrieval.ann import AnnIndex
from tripod.retrieval.fusion import fuse
from tripod.retrieval.passage_table import PassageTable
from tripod.retrieval.sqlite_where import condition
from tripod.retrieval.vector_format import VectorFormat, decode_all

if TYPE_CHECKING:
    from tripod.protocols import Vectors

CANDIDATES = 200  # of each kind, at least; four times k, if that is more
_SMALL_SHARE = 20_000  # passages that pass a filter; so few are all looked at


def approximate_search(
    connection: sqlite3.Connection,
    ann: AnnIndex,
    fresh: PassageTable,
    terms: Sequence[str],
    vector: Vectors | None,
    k: int,
    only: Filter | None,
) -> list[tuple[int, float]]:
    """The ids and scores of about the k best passages.

    Args:
        connection: the index, at one moment.
        ann: knows the vectors up to some change.
        fresh: the passages of all sources that came later.
        terms: to look for; none, if the vector alone decides.
        vector: [dim]; None: the words alone decide.
        k: at most so many.
        only: what the sources must be.
    """
    depth = max(CANDIDATES, 4 * k)
    [num_passages] = connection.execute("SELECT count(*) FROM passages").fetchone()
    bm25: dict[int, float] = {}
    cosine: dict[int, float] = {}
    counts = fts5.counts_of(connection, terms)
    few = _few_that_pass(connection, only)
    if few is not None:
        bm25 = fts5.scores_of(connection, terms, few) if terms else {}
        cosine = _cosines(connection, fresh.form, vector, few) if vector is not None else {}
    else:
        if terms:
            bm25 = fts5.best_matches(connection, counts, 4 * k if vector is None else depth, num_passages, *_passages_that(only))
        if vector is not None:
            cosine = _nearest(connection, ann, fresh, vector, depth if terms else k, only)
        if terms and vector is not None:
            named_by_words = [passage_id for passage_id in bm25 if passage_id not in cosine]
            named_by_meaning = [passage_id for passage_id in cosine if passage_id not in bm25]
            cosine |= _cosines(connection, fresh.form, vector, named_by_words)
            bm25 |= fts5.scores_of(connection, terms, named_by_meaning)
    if vector is None or not terms:
        return _in_order(connection, bm25 if vector is None else cosine, k)
    candidates = list(cosine)
    fused = fuse(
        np.array([bm25.get(passage_id, 0.0) for passage_id in candidates], dtype=np.float32),
        fts5.bound(counts.values(), num_passages),
        np.array([cosine[passage_id] for passage_id in candidates], dtype=np.float32),
    )
    return _in_order(connection, dict(zip(candidates, fused.tolist(), strict=True)), k)


def _few_that_pass(connection: sqlite3.Connection, only: Filter | None) -> list[int] | None:
    """The ids of the passages that pass a filter; None if there is no filter, or they are many."""
    if only is None:
        return None
    sql, parameters = _passages_that(only)
    passing = connection.execute(f"{sql} LIMIT ?", (*parameters, _SMALL_SHARE + 1)).fetchall()
    return [row[0] for row in passing] if len(passing) <= _SMALL_SHARE else None


def _nearest(
    connection: sqlite3.Connection, ann: AnnIndex, fresh: PassageTable, vector: Vectors, number: int, only: Filter | None
) -> dict[int, float]:
    """The dot products of about the nearest passages that pass, and maybe of some more."""
    among, parameters = _passages_that(only)
    newer = set(fresh.source_ids[fresh.present()].tolist())
    asked = number
    while True:
        ids = ann.nearest(vector, asked)
        # What is gone since, or passes no more, falls out here; so does an old passage whose id a fresh one has now.
        rows = connection.execute(
            f"SELECT id, source_id FROM passages WHERE id IN (SELECT value FROM json_each(?)) {among and f'AND id IN ({among})'}",
            (json.dumps(ids.tolist()), *parameters),
        )
        kept = [row[0] for row in rows if row[1] not in newer]
        if len(kept) >= number or asked > len(ids):
            break
        asked *= 4
    found = _cosines(connection, fresh.form, vector, kept)
    if fresh.num_passages and fresh.dim:
        cosine = fresh.cosine(vector)
        allowed = fresh.present()
        if only is not None:
            wanted, values = condition(only)
            allowed = fresh.of_sources(row[0] for row in connection.execute(f"SELECT id FROM sources WHERE {wanted}", values))
        found |= {int(fresh.ids[row]): float(cosine[row]) for row in fresh.best(cosine, allowed, number)}
    return found


def _cosines(connection: sqlite3.Connection, form: VectorFormat, vector: Vectors, ids: Sequence[int]) -> dict[int, float]:
    rows = connection.execute(
        "SELECT id, vector FROM passages WHERE id IN (SELECT value FROM json_each(?)) AND vector IS NOT NULL", (json.dumps(list(ids)),)
    ).fetchall()
    if not rows:
        return {}
    kept, scales = decode_all([row[1] for row in rows], form)
    scores = (kept.astype(np.float32) @ np.asarray(vector, dtype=np.float32)) * scales
    return dict(zip([row[0] for row in rows], scores.tolist(), strict=True))


def _passages_that(only: Filter | None) -> tuple[str, list[str | int | float]]:
    """A query of the ids of passages whose source passes; empty without a filter."""
    if only is None:
        return "", []
    sql, parameters = condition(only)
    return f"SELECT passages.id FROM passages JOIN sources ON sources.id = source_id WHERE {sql}", parameters


def _in_order(connection: sqlite3.Connection, scores: Mapping[int, float], k: int) -> list[tuple[int, float]]:
    """The k best; of equals, by source, then by place."""
    rounded = {passage_id: float(np.float32(score)) for passage_id, score in scores.items()}  # so that equals are equal
    threshold = sorted(rounded.values(), reverse=True)[:k][-1:]
    candidates = [passage_id for passage_id, score in rounded.items() if score >= threshold[0]]
    rows = connection.execute(
        "SELECT passages.id, source, start FROM passages JOIN sources ON sources.id = source_id "
        "WHERE passages.id IN (SELECT value FROM json_each(?))",
        (json.dumps(candidates),),
    )
    places = {row[0]: row[1:] for row in rows}
    order = sorted(candidates, key=lambda passage_id: (-rounded[passage_id], *places[passage_id], passage_id))
    return [(passage_id, rounded[passage_id]) for passage_id in order[:k]]
