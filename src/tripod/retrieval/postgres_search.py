"""Candidates by words and by meaning, both scores of each, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tripod.filters import Filter
from tripod.retrieval import postgres_words
from tripod.retrieval.fusion import fuse
from tripod.retrieval.postgres_where import condition

if TYPE_CHECKING:
    from psycopg import Connection

    from tripod.protocols import Vectors

CANDIDATES = 200  # of each kind, at least; four times k, if that is more
_EXPANSION_SEARCH = 512  # of HNSW, as in `ann`; pgvector takes at most 1000


def best_passages(connection: Connection, terms: Sequence[str], vector: Vectors | None, k: int, only: Filter | None) -> dict[int, float]:
    """The ids and scores of the k best passages, best first; of equals, by source, then by place."""
    depth = max(CANDIDATES, 4 * k)
    where, parameters = condition(only) if only is not None else ("true", [])
    query = postgres_words.prepare(connection, terms) if terms else None
    bm25 = postgres_words.bm25(connection, query, depth, where, parameters) if query is not None else {}
    if vector is None:
        return _in_order(connection, {passage_id: score for passage_id, score in bm25.items() if score > 0}, k)
    cosine = _nearest(connection, vector, depth if query is not None else k, where, parameters)
    if query is None:
        return _in_order(connection, cosine, k)
    nearest = list(cosine)
    lexical = sorted(bm25, key=lambda passage_id: -bm25[passage_id])[:depth]
    bm25 |= postgres_words.score_passages(connection, query, [passage_id for passage_id in nearest if passage_id not in bm25])
    cosine |= _cosines(connection, vector, [passage_id for passage_id in lexical if passage_id not in cosine])
    candidates = list(dict.fromkeys([*nearest, *lexical]))
    scores = fuse(_array(bm25, candidates), query.bound, _array(cosine, candidates))
    return _in_order(connection, dict(zip(candidates, scores.tolist(), strict=True)), k)


def _nearest(connection: Connection, vector: Vectors, number: int, where: str, parameters: Sequence[Any]) -> dict[int, float]:
    """The dot products of the nearest passages: exactly, or where there is an HNSW index as it finds them."""
    if connection.execute("SELECT to_regclass('passages_vector')").fetchone() == (None,):
        sql = f"""SELECT passages.id, -(vector <#> %s) FROM passages JOIN sources ON sources.id = source_id
            WHERE vector IS NOT NULL AND {where} ORDER BY vector <#> %s, source, start_at LIMIT %s"""
    else:
        # With a filter the index is read on until enough pass.
        connection.execute(f"SET LOCAL hnsw.ef_search = {min(max(_EXPANSION_SEARCH, 2 * number), 1000)}")
        connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        sql = f"""SELECT passages.id, -(vector <#> %s) FROM passages JOIN sources ON sources.id = source_id WHERE {where}
            ORDER BY vector <#> %s LIMIT %s"""
    query = np.asarray(vector, dtype=np.float32)
    return dict(connection.execute(sql, (query, *parameters, query, number)).fetchall())


def _cosines(connection: Connection, vector: Vectors, ids: Iterable[int]) -> dict[int, float]:
    rows = connection.execute(
        "SELECT id, -(vector <#> %s) FROM passages WHERE id = ANY (%s) AND vector IS NOT NULL",
        (np.asarray(vector, dtype=np.float32), list(ids)),
    )
    return dict(rows.fetchall())


def _array(values: Mapping[int, float], ids: Sequence[int]) -> Vectors:
    return np.array([values.get(passage_id, 0.0) for passage_id in ids], dtype=np.float32)


def _in_order(connection: Connection, scores: Mapping[int, float], k: int) -> dict[int, float]:
    rounded = {passage_id: float(np.float32(score)) for passage_id, score in scores.items()}  # so that equals are equal
    best = sorted(rounded.values(), reverse=True)[:k]
    candidates = [passage_id for passage_id, score in rounded.items() if score >= best[-1]] if best else []
    rows = connection.execute(
        "SELECT passages.id, source, start_at FROM passages JOIN sources ON sources.id = source_id WHERE passages.id = ANY (%s)",
        (candidates,),
    )
    places = {row[0]: row[1:] for row in rows}
    order = sorted(candidates, key=lambda passage_id: (-rounded[passage_id], *places[passage_id], passage_id))
    return {passage_id: rounded[passage_id] for passage_id in order[:k]}
