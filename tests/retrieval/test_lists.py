"""Lists of passages, scored, fused and put into another order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.documents import Document, Passage
from tripod.errors import ConfigError, EngineError, RequestError
from tripod.retrieval.index import Index
from tripod.retrieval.lists import best_at_both_ends, bm25, boost, dense, rrf, weighted
from tripod.retrieval.mmr import mmr, mmr_order
from tripod.retrieval.rerank import rerank

if TYPE_CHECKING:
    from pathlib import Path

    from tripod.protocols import Vectors


def passage(name: str, text: str = "text", score: float | None = None, **metadata: str) -> Passage:
    return Passage(source=name, start=0, end=len(text), text=text, score=score, metadata=metadata)


def names(passages: Sequence[Passage]) -> str:
    return "".join(one.source for one in passages)


A, B, C, D = (passage(name) for name in "abcd")
TEXTS = [
    passage("a", "The dome closes in strong wind, and wind is measured on the dome."),
    passage("b", "Rivers flow to the sea."),
    passage("c", "The wind of the sea."),
]


class Compass:
    """An embedder of the plane: a text is one of four directions by its first letter."""

    fingerprint, dim = "compass", 2
    ways = {"n": (0.0, 1.0), "e": (1.0, 0.0), "s": (0.0, -1.0), "m": (0.6, 0.8)}  # noqa: RUF012 - never changed

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
        return np.array([self.ways[text[0]] for text in texts], dtype=np.float32)


def test_bm25_over_a_list_is_that_of_an_index(tmp_path: Path) -> None:
    async def play() -> list[Passage]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.add(Document(source=one.source, text=one.text) for one in TEXTS)
            return await index.search("how fast is the wind on a dome?", mode="bm25")

    here, there = bm25("how fast is the wind on a dome?", TEXTS), asyncio.run(play())
    assert names(here) == names(there) == "ac"
    assert [one.score for one in here] == pytest.approx([one.score for one in there])
    assert bm25("moon", TEXTS) == []
    assert names(bm25("wind sea", TEXTS, k=1)) == "c"


def test_vectors_order_by_cosine() -> None:
    found = asyncio.run(dense("north", [passage("e", "east"), passage("m", "mostly north"), passage("s", "south")], Compass(), k=2))
    assert names(found) == "me"
    assert found[0].score == pytest.approx(0.8)
    assert asyncio.run(dense("north", [], Compass())) == []


def test_reciprocal_ranks_by_hand() -> None:
    fused = rrf([[A, B], [B, C]])
    assert names(fused) == "bac"
    assert [one.score for one in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])
    assert names(rrf([[A, B], [C, D]], weights=[1.0, 2.0])) == "cdab"
    assert rrf([]) == []
    with pytest.raises(ConfigError, match="1 weights were given for 2 rankings"):
        rrf([[A], [B]], weights=[1.0])


@given(st.permutations(["x", "y", "z"]), st.permutations(["x", "y", "z"]))
def test_fusion_does_not_depend_on_the_order_of_the_rankings(first: list[str], second: list[str]) -> None:
    one, other = [passage(name) for name in first], [passage(name) for name in second]
    assert {p.source: p.score for p in rrf([one, other])} == pytest.approx({p.source: p.score for p in rrf([other, one])})


def test_weighted_scores_are_brought_to_one_scale() -> None:
    words = [passage("a", score=20.0), passage("b", score=10.0), passage("c", score=0.0)]
    vectors = [passage("c", score=0.9), passage("b", score=0.8)]
    fused = weighted([words, vectors], weights=[0.5, 0.5])
    assert {one.source: one.score for one in fused} == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.5})
    with pytest.raises(ConfigError, match="no score"):
        weighted([[A]])


def test_a_boost_multiplies_and_orders_anew() -> None:
    found = [passage("a", score=3.0, lang="de"), passage("b", score=2.0, lang="en")]
    assert names(boost(found, lambda one: 2.0 if one.metadata["lang"] == "en" else 1.0)) == "ba"
    with pytest.raises(ConfigError, match=r"score -1\.0"):
        boost([passage("a", score=-1.0)], lambda one: 2.0)


def test_the_best_stand_at_both_ends() -> None:
    assert names(best_at_both_ends([passage(name) for name in "12345"])) == "13542"
    assert best_at_both_ends([]) == []


def test_a_second_copy_is_passed_over_for_something_new() -> None:
    found = [passage("1", "north"), passage("2", "north again"), passage("3", "mostly north")]
    assert names(asyncio.run(mmr("north", found, Compass(), k=2, relevance=0.3))) == "13"  # 0.3 - 0.7 against 0.24 - 0.56
    assert names(asyncio.run(mmr("north", found, Compass(), k=3, relevance=1.0))) == "123"
    assert asyncio.run(mmr("north", [], Compass())) == []
    with pytest.raises(ConfigError, match=r"relevance=1\.5"):
        asyncio.run(mmr("north", found, Compass(), relevance=1.5))


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0, 1))
def test_each_choice_is_the_best_that_is_left(seed: int, k: int, share: float) -> None:
    vectors = np.random.default_rng(seed).normal(size=(9, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[0]
    chosen = mmr_order(query, vectors, k, relevance=share)
    assert len(chosen) == len(set(chosen)) == min(k, 9)
    for count, index in enumerate(chosen):  # the definition, word for word
        before = chosen[:count]
        value = {
            i: share * float(vectors[i] @ query) - (1 - share) * max((float(vectors[i] @ vectors[j]) for j in before), default=0.0)
            for i in range(9)
            if i not in before
        }
        assert value[index] == pytest.approx(max(value.values()), abs=1e-5)  # float32 sums


def test_a_reranker_orders_by_its_own_scores() -> None:
    class Backwards:
        async def rerank(self, question: str, passages: Sequence[Passage]) -> list[float]:
            return [float(place) for place in range(len(passages))]

    assert names(asyncio.run(rerank("?", [A, B, C], Backwards(), k=2))) == "cb"

    class Short:
        async def rerank(self, question: str, passages: Sequence[Passage]) -> list[float]:
            return [0.0]

    with pytest.raises(EngineError, match="1 scores for 3 passages"):
        asyncio.run(rerank("?", [A, B, C], Short()))


def test_too_many_words_are_refused_as_an_index_refuses_them() -> None:
    with pytest.raises(RequestError, match="shorten"):
        bm25(" ".join(f"w{number}" for number in range(2000)), TEXTS)
