"""How good a ranking is: nDCG, recall, reciprocal rank and average precision, by the definitions of trec_eval.

A ranking is a list of ids, best first; gains map the ids of relevant documents to a positive gain (1 where judgements are
binary). Every metric is between 0 and 1, and raises ValueError for a query without a relevant document, which has no value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ndcg(ranking: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain at k, with linear gains (Järvelin & Kekäläinen 2002; trec_eval `ndcg_cut`)."""
    ideal = _dcg(sorted(_relevant(gains).values(), reverse=True)[:k])
    return _dcg([max(gains.get(found, 0.0), 0.0) for found in _distinct(ranking[:k])]) / ideal


def recall(ranking: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """The share of the relevant documents that is among the first k (trec_eval `recall`)."""
    relevant = _relevant(gains)
    return sum(found in relevant for found in _distinct(ranking[:k])) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """One over the rank of the first relevant document; 0 if it is not among the first k. Its mean over queries is MRR@k."""
    relevant = _relevant(gains)
    return next((1 / rank for rank, found in enumerate(_distinct(ranking[:k]), start=1) if found in relevant), 0.0)


def average_precision(ranking: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """The mean, over all relevant documents, of the precision at their rank; 0 for those not among the first k
    (trec_eval `map_cut`). Its mean over queries is MAP@k."""
    relevant = _relevant(gains)
    precisions: list[float] = []
    for rank, found in enumerate(_distinct(ranking[:k]), start=1):
        if found in relevant:
            precisions.append((len(precisions) + 1) / rank)
    return sum(precisions) / len(relevant)


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _relevant(gains: Mapping[str, float]) -> dict[str, float]:
    relevant = {document: gain for document, gain in gains.items() if gain > 0}
    if not relevant:
        raise ValueError("the query has no relevant document, so the metric is not defined; leave the query out")
    return relevant


def _distinct(ranking: Sequence[str]) -> Sequence[str]:
    if len(set(ranking)) != len(ranking):
        raise ValueError("the ranking names a document twice, which would count it twice; keep its first place only")
    return ranking
