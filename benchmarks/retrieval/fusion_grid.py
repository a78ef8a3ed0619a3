"""The grid from which the fusion was chosen: families and their weights on Cranfield alone, cross-validated over queries.

    python -m benchmarks.retrieval.fusion_grid

Every family gets the same scores: FTS5's BM25 (words stemmed, our stop words left out) and the cosine of our embedder, for all texts.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import tripod
from benchmarks.retrieval.judged_sets import JudgedSet, cranfield
from tripod.evaluation.retrieval_metrics import ndcg
from tripod.retrieval.local_embedder import find_default_embedder
from tripod.retrieval.query import expression, terms

Matrix = NDArray[np.float64]  # [Q, N], queries by texts
NUM_FOLDS = 5
SEED = 0
DEPTH = 100  # of the lists that rank fusion sees


@dataclass(frozen=True, slots=True)
class Scores:
    """What there is to fuse."""

    bm25: Matrix  # 0 where no word of the query occurs
    bound: Matrix  # [Q, 1], the largest BM25 that the query's words could give
    cosine: Matrix


def scores_of(judged: JudgedSet) -> Scores:
    """Both scores of every text for every query."""
    embedder, reason = find_default_embedder()
    if embedder is None:
        raise SystemExit(f"no embedder: {reason}")
    texts, queries = list(judged.documents.values()), list(judged.queries.values())
    cosine = tripod.run(embedder.embed(queries, kind="query")) @ tripod.run(embedder.embed(texts, kind="passage")).T
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'porter unicode61')")
    connection.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", enumerate(texts))
    bm25, bound = np.zeros((len(queries), len(texts))), np.zeros((len(queries), 1))
    for i, query in enumerate(queries):
        for text, score in connection.execute("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (expression(terms(query)),)):
            bm25[i, text] = score
        for word in terms(query):
            [n] = connection.execute("SELECT count(*) FROM words WHERE words MATCH ?", (expression([word]),)).fetchone()
            bound[i] += max(math.log((len(texts) - n + 0.5) / (n + 0.5)), 1e-6) * 2.2
    return Scores(bm25, bound, cosine.astype(np.float64))


def families(scores: Scores) -> Iterator[tuple[str, float, Matrix]]:
    """(family, constant, fused scores)."""
    bm25, cosine = scores.bm25, scores.cosine
    best_bm25, best_cosine = bm25.max(1, keepdims=True), cosine.max(1, keepdims=True)
    lexical_rank, dense_rank = _ranks(bm25), _ranks(cosine)
    has_words, is_near = (lexical_rank < DEPTH) & (bm25 > 0), dense_rank < DEPTH
    worst_near = np.where(is_near, cosine, np.inf).min(1, keepdims=True)
    for percent in range(5, 100, 5):
        weight = percent / 100
        mixes = {
            "share of the attainable BM25 + cosine": (bm25 / scores.bound, cosine),
            "BM25 / best + cosine": (bm25 / best_bm25, cosine),
            "theoretical min-max (arXiv:2210.11934)": (bm25 / best_bm25, (cosine + 1) / (best_cosine + 1)),
            "min-max of the candidates": (bm25 / best_bm25, np.clip((cosine - worst_near) / (best_cosine - worst_near), 0, None)),
            "z-scores": (_z(bm25), _z(cosine)),
        }
        for name, (lexical, dense) in mixes.items():
            yield name, weight, (1 - weight) * lexical + weight * dense
    for weight in (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.06, 0.1):
        yield "cosine + weight * raw BM25", weight, cosine + weight * bm25
    for k in (0, 1, 2, 5, 10, 20, 60):
        for weight in (0.3, 0.4, 0.5, 0.6, 0.7):
            lexical, dense = np.where(has_words, 1 / (k + lexical_rank + 1), 0), np.where(is_near, 1 / (k + dense_rank + 1), 0)
            yield "weighted RRF", k + weight, (1 - weight) * lexical + weight * dense


def ndcg_of(judged: JudgedSet, fused: Matrix) -> NDArray[np.float64]:
    """[Q]."""
    names = list(judged.documents)
    tops = np.argsort(-fused, axis=1, kind="stable")[:, :10]
    return np.array([ndcg([names[i] for i in top], judged.gains[query], 10) for query, top in zip(judged.queries, tops, strict=True)])


def _ranks(scores: Matrix) -> NDArray[np.int64]:
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None], axis=1)
    return ranks


def _z(scores: Matrix) -> Matrix:
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + 1e-9)


def main() -> None:
    judged = cranfield()
    scores = scores_of(judged)
    print(f"BM25 {ndcg_of(judged, scores.bm25).mean():.4f}, dense {ndcg_of(judged, scores.cosine).mean():.4f}\n")
    grid: dict[str, dict[float, NDArray[np.float64]]] = {}
    for family, constant, fused in families(scores):
        grid.setdefault(family, {})[constant] = ndcg_of(judged, fused)
    folds = np.random.default_rng(SEED).permutation(len(judged.queries)) % NUM_FOLDS
    print("| family | best constant | nDCG@10 there | cross-validated | constants within 0.003 of the best |")
    print("|---|---|---|---|---|")
    for family, tried in grid.items():
        best = max(tried, key=lambda constant: tried[constant].mean())
        held_out = np.empty(len(folds))
        for fold in range(NUM_FOLDS):
            chosen = max(tried, key=lambda constant: tried[constant][folds != fold].mean())
            held_out[folds == fold] = tried[chosen][folds == fold]
        near = [f"{constant:g}" for constant, values in tried.items() if values.mean() > tried[best].mean() - 0.003]
        print(f"| {family} | {best:g} | {tried[best].mean():.4f} | {held_out.mean():.4f} | {', '.join(near)} |")


if __name__ == "__main__":
    main()
