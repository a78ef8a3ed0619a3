"""Passages that are relevant and unlike each other: maximal marginal relevance (Carbonell & Goldstein 1998)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tripod.documents import Passage
from tripod.errors import ConfigError
from tripod.protocols import Embedder

if TYPE_CHECKING:
    from tripod.protocols import Vectors

RELEVANCE = 0.5


async def mmr(
    question: str, passages: Sequence[Passage], embedder: Embedder, k: int = 10, *, relevance: float = RELEVANCE
) -> list[Passage]:
    """The k passages, each chosen for being near to the question and far from those chosen before it.

    Args:
        question: what they are to be relevant for.
        passages: candidates, such as the first fifty of a search. Their scores are kept and not looked at.
        embedder: gives unit vectors.
        k: how many to choose.
        relevance: 1 looks at the question only, 0 at the difference only.

    Raises:
        ConfigError: `relevance` is not between 0 and 1.
    """
    if not passages:
        return []
    query = (await embedder.embed([question], kind="query"))[0]
    vectors = await embedder.embed([passage.text for passage in passages], kind="passage")
    return [passages[index] for index in mmr_order(query, vectors, k, relevance=relevance)]


def mmr_order(query: Vectors, vectors: Vectors, k: int, *, relevance: float = RELEVANCE) -> list[int]:
    """The same on vectors.

    Args:
        query: [D].
        vectors: [N, D], unit vectors.
        k: how many to choose, at most N are.
        relevance: between 0 and 1.

    Returns:
        Indices in the order in which they were chosen; of equals, the earlier first.
    """
    import numpy as np

    if not 0.0 <= relevance <= 1.0:
        raise ConfigError(f"relevance={relevance} is no share; give a number between 0 and 1")
    near = vectors @ query  # [N]
    likeness = np.zeros(len(vectors), dtype=np.float32)  # of each to the most similar of those chosen; to none at first
    chosen: list[int] = []
    gain = relevance * near
    for _ in range(min(k, len(vectors))):
        value = gain - (1 - relevance) * likeness
        value[chosen] = -np.inf
        index = int(np.argmax(value))
        similar = vectors @ vectors[index]
        likeness = np.maximum(likeness, similar) if chosen else similar
        chosen.append(index)
    return chosen
