"""The peers on the same texts: bm25s with a stemmer, sentence-transformers, and reciprocal rank fusion of the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from benchmarks.retrieval.judged_sets import JudgedSet

DEPTH = 100  # how much of each list is fused
RRF_K = 60  # Cormack, Clarke and Büttcher 2009

Rankings = dict[str, list[str]]  # query id -> document ids, best first


def bm25s_rankings(judged: JudgedSet) -> Rankings:
    """bm25s 0.3 with its defaults (Lucene's variant, k1 1.5, b 0.75, English stop words) and Snowball's English stemmer."""
    ids = list(judged.documents)
    stemmer = Stemmer.Stemmer("english")
    retriever = bm25s.BM25()
    retriever.index(
        bm25s.tokenize(list(judged.documents.values()), stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False
    )
    rankings: Rankings = {}
    for query, text in judged.queries.items():
        tokens = bm25s.tokenize([text], stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False)
        if not tokens[0]:
            rankings[query] = []
            continue
        found, scores = retriever.retrieve(tokens, k=min(DEPTH, len(ids)), show_progress=False, n_threads=1)
        rankings[query] = [ids[i] for i, score in zip(found[0], scores[0], strict=True) if score > 0]
    return rankings


def sentence_transformers_vectors(folder: Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """[N, D], by sentence-transformers as it comes: float32, batches of 32, normalised."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float32)


def dense_rankings(judged: JudgedSet, documents: NDArray[np.float32], queries: NDArray[np.float32]) -> Rankings:
    """Exact search by dot product."""
    ids = list(judged.documents)
    rankings: Rankings = {}
    for query, vector in zip(judged.queries, queries, strict=True):
        order = np.argsort(-(documents @ vector), kind="stable")[:DEPTH]
        rankings[query] = [ids[i] for i in order]
    return rankings


def rrf_rankings(first: Rankings, second: Rankings) -> Rankings:
    """Reciprocal rank fusion with equal weights."""
    fused: Rankings = {}
    for query in first:
        scores: dict[str, float] = {}
        for ranking in (first[query], second[query]):
            for rank, document in enumerate(ranking, start=1):
                scores[document] = scores.get(document, 0.0) + 1 / (RRF_K + rank)
        fused[query] = sorted(scores, key=lambda document: -scores[document])
    return fused
