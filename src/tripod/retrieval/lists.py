"""Lists of passages, best first: scored by words or by vectors, fused, weighed anew, and put into another order. Functions on plain values.

`Index.search` does the first of these inside its store; here they are for passages from anywhere. The others have rooms of their own:
`mmr`, `rerank`, `expand` and `questions`; and `recipes` puts them together.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from tripod.documents import Passage
from tripod.errors import ConfigError
from tripod.protocols import Embedder
from tripod.retrieval.fts5 import SCHEMA, add_words, expression
from tripod.retrieval.query import terms

RRF_K = 60  # Cormack, Clarke and Büttcher 2009


def bm25(question: str, passages: Sequence[Passage], k: int = 10) -> list[Passage]:
    """The passages that hold words of the question, by the same BM25 as an index: SQLite's FTS5 with Porter's stemmer, in memory."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(SCHEMA)
        for number, passage in enumerate(passages):
            add_words(connection, number, passage.section, passage.text)
        wanted = terms(question)
        if not wanted:
            return []
        found = connection.execute(
            "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?", (expression(wanted), k)
        ).fetchall()
    return [replace(passages[number], score=score) for number, score in found]


async def dense(question: str, passages: Sequence[Passage], embedder: Embedder, k: int = 10) -> list[Passage]:
    """The passages whose vectors are nearest to the question's, by cosine. All of them are embedded, so this is for short lists."""
    if not passages:
        return []
    query = (await embedder.embed([question], kind="query"))[0]
    scores = await embedder.embed([passage.text for passage in passages], kind="passage") @ query
    return best([replace(passage, score=float(score)) for passage, score in zip(passages, scores, strict=True)], k)


def best(passages: Sequence[Passage], k: int) -> list[Passage]:
    """The k with the largest scores, larger first; equal scores, and passages without one, keep their order."""
    return sorted(passages, key=lambda passage: -(passage.score if passage.score is not None else float("-inf")))[:k]


def rrf(
    rankings: Sequence[Sequence[Passage]], k: int = 10, *, weights: Sequence[float] | None = None, constant: float = RRF_K
) -> list[Passage]:
    """Reciprocal rank fusion (Cormack, Clarke & Büttcher 2009): looks at ranks only, so scores of any scale can be mixed.

    Args:
        rankings: best first; a passage that occurs in several is counted once.
        k: how many to return.
        weights: of each ranking; None weighs them alike.
        constant: large evens out the first ranks.

    Raises:
        ConfigError: not as many weights as rankings.
    """
    return _fused(rankings, k, weights, lambda ranking: [1 / (constant + rank) for rank in range(1, len(ranking) + 1)])


def weighted(rankings: Sequence[Sequence[Passage]], k: int = 10, *, weights: Sequence[float] | None = None) -> list[Passage]:
    """The weighted sum of scores, each ranking's brought to 0..1 by its own least and largest; a passage that is absent counts as 0.

    Raises:
        ConfigError: not as many weights as rankings, or a passage without a score.
    """
    return _fused(rankings, k, weights, _between_0_and_1)


def _fused(
    rankings: Sequence[Sequence[Passage]], k: int, weights: Sequence[float] | None, shares: Callable[[Sequence[Passage]], Sequence[float]]
) -> list[Passage]:
    if weights is not None and len(weights) != len(rankings):
        raise ConfigError(f"{len(weights)} weights were given for {len(rankings)} rankings; give one each")
    found: dict[str, Passage] = {}
    scores: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for passage, share in zip(ranking, shares(ranking), strict=True):
            found.setdefault(passage.id, passage)
            scores[passage.id] = scores.get(passage.id, 0.0) + weight * share
    return best([replace(passage, score=scores[name]) for name, passage in found.items()], k)


def _between_0_and_1(ranking: Sequence[Passage]) -> list[float]:
    scores = [passage.score for passage in ranking if passage.score is not None]
    if len(scores) < len(ranking):
        raise ConfigError("a passage has no score, so its ranking cannot be weighed by scores; use rrf, which looks at ranks")
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def boost(passages: Sequence[Passage], factor: Callable[[Passage], float]) -> list[Passage]:
    """Scores times a factor, such as `lambda p: 1.5 if p.metadata.get("lang") == "en" else 1.0`; in the new order.

    Raises:
        ConfigError: a passage has no score, or a negative one, which a factor above 1 would push down.
    """
    boosted = []
    for passage in passages:
        if passage.score is None or passage.score < 0:
            raise ConfigError(f"{passage.id} has the score {passage.score}; only scores from 0 on can be multiplied. Fuse or rerank first")
        boosted.append(replace(passage, score=passage.score * factor(passage)))
    return best(boosted, len(boosted))


def best_at_both_ends(passages: Sequence[Passage]) -> list[Passage]:
    """The best first and last, the worst in the middle, where long prompts are read least (Liu et al. 2023, arXiv:2307.03172)."""
    return [*passages[::2], *passages[1::2][::-1]]
