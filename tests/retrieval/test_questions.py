"""Questions made better by a model, and the recipes that use them. The model's wit is scripted; the index is real."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from benchmarks.campaigns.hash_embedder import HashEmbedder

from tripod.chat.scripted import ScriptedModel
from tripod.documents import Document, Passage
from tripod.errors import ConfigError, RequestError
from tripod.messages import Message, Reply, TokenLogprob, Usage
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.retrieval import recipes
from tripod.retrieval.index import Index
from tripod.retrieval.questions import decomposed, imagined, rephrased, routed, self_queried
from tripod.retrieval.rerank import ModelReranker
from tripod.sampling import SamplingParams

T = TypeVar("T")
DOCUMENTS = [
    Document(source="dome", text="The dome closes when the wind is strong.", metadata={"year": 2024, "lang": "en"}),
    Document(source="roof", text="In a gale the roof is shut by the engineer.", metadata={"year": 2023, "lang": "en"}),
    Document(source="motor", text="The motor turns the telescope.", metadata={"year": 2024, "lang": "de"}),
]


def with_index(folder: Path, use: Callable[[Index], Awaitable[T]], embedder: HashEmbedder | None = None) -> T:
    async def play() -> T:
        async with Index(folder / "kb.db", embedder=embedder) as index:
            await index.add(DOCUMENTS)
            return await use(index)

    return asyncio.run(play())


def sources(passages: Sequence[Passage]) -> list[str]:
    return [passage.source for passage in passages]


def test_a_question_is_asked_in_other_words_too() -> None:
    model = ScriptedModel(['Here: ["When does the roof shut?", "When does it close?", "x", "y"]'])
    assert asyncio.run(rephrased("When does it close?", model, n=3)) == ["When does it close?", "When does the roof shut?", "x"]
    with pytest.raises(RequestError, match="wrote no JSON"):
        asyncio.run(rephrased("When?", ScriptedModel(["I cannot."])))
    with pytest.raises(ConfigError, match="n=0"):
        asyncio.run(rephrased("When?", ScriptedModel([]), n=0))


def test_a_question_is_taken_apart_or_left_alone() -> None:
    assert asyncio.run(decomposed("a and b?", ScriptedModel(['["a?", "b?"]']))) == ["a?", "b?"]
    assert asyncio.run(decomposed("a?", ScriptedModel(["[]"]))) == ["a?"]


def test_an_empty_imagination_leaves_the_question() -> None:
    assert asyncio.run(imagined("When?", ScriptedModel([" It closes in wind.\n"]))) == "It closes in wind."
    assert asyncio.run(imagined("When?", ScriptedModel(["  "]))) == "When?"


def test_a_route_is_one_of_those_given() -> None:
    choices = {"law": "statutes and rulings", "code": "source code"}
    model = ScriptedModel(["`code`."])
    assert asyncio.run(routed("What does main do?", choices, model)) == "code"
    assert "- law: statutes and rulings" in str(model.prompts[0])
    with pytest.raises(RequestError, match="'cooking'; the names given are law, code"):
        asyncio.run(routed("?", choices, ScriptedModel(["cooking"])))


def test_what_is_a_filter_is_taken_out_of_the_question() -> None:
    asked = asyncio.run(self_queried("wind in 2024", {"year": int}, ScriptedModel(['{"question": "wind", "filter": {"year": 2024}}'])))
    assert asked == ("wind", {"year": 2024})


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "wind", "filter": {"month": 3}}',
        '{"question": "wind", "filter": {"year": "2024"}}',
        '{"question": "wind", "filter": {"year": true}}',
        '{"question": "wind"}',
        '{"question": "wind", "filter": {"lang": "fr"}}',
    ],
)
def test_a_filter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        asyncio.run(self_queried("wind", {"year": int, "lang": str}, ScriptedModel([text]), values={"lang": ["en", "de"]}))


def test_other_words_find_what_the_question_does_not(tmp_path: Path) -> None:
    async def use(index: Index) -> list[Passage]:
        return await recipes.multi_query("dome wind", index, ScriptedModel(['["roof in a gale"]']))

    assert set(sources(with_index(tmp_path, use))) == {"dome", "roof"}


def test_every_part_of_a_question_finds_its_passage(tmp_path: Path) -> None:
    async def use(index: Index) -> list[Passage]:
        return await recipes.in_parts("dome wind and telescope motor", index, ScriptedModel(['["dome wind", "motor"]']), k=2)

    assert sources(with_index(tmp_path, use)) == ["dome", "motor"]


def test_a_filter_of_the_question_reaches_the_store(tmp_path: Path) -> None:
    async def use(index: Index) -> list[Passage]:
        model = ScriptedModel(['{"question": "engineer wind telescope", "filter": {"year": 2024, "lang": "de"}}'])
        return await recipes.filtered("engineer wind telescope, German, of 2024", index, {"year": int, "lang": str}, model)

    assert sources(with_index(tmp_path, use)) == ["motor"]


def test_the_right_index_is_asked(tmp_path: Path) -> None:
    async def use(index: Index) -> list[Passage]:
        async with Index(tmp_path / "other.db", embedder=None) as other:
            await other.add([Document(source="moon", text="The wind on the moon.")])
            both = {"earth": index, "moon": other}
            return await recipes.from_the_right_index("wind?", both, {"earth": "here", "moon": "there"}, ScriptedModel(["moon"]))

    assert sources(with_index(tmp_path, use)) == ["moon"]


class Weathered(ScriptedModel):
    """Says yes to passages that speak of a gale."""

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        yes = 0.9 if "gale" in str(prompt) else 0.1
        words = (("yes", yes), ("no", 1 - yes))
        top = tuple(TokenLogprob(number, word, word.encode(), math.log(p)) for number, (word, p) in enumerate(words))
        token = TokenLogprob(0, "yes", b"yes", math.log(yes), top)
        return Reply(message=Message("assistant", "yes"), finish_reason="stop", usage=Usage(), logprobs=(token,))


def test_a_model_reranks_by_its_probability_of_yes(tmp_path: Path) -> None:
    async def use(index: Index) -> list[Passage]:
        return await recipes.reranked("wind dome engineer", index, ModelReranker(Weathered([])), k=2)

    found = with_index(tmp_path, use)
    assert sources(found) == ["roof", "dome"]
    assert found[0].score == pytest.approx(0.9)

    async def silent(index: Index) -> list[Passage]:
        return await recipes.reranked("wind", index, ModelReranker(ScriptedModel(["yes"] * 9)))

    with pytest.raises(RequestError, match="no probability of yes or no"):
        with_index(tmp_path, silent)


def test_the_other_recipes_find_over_a_real_index(tmp_path: Path) -> None:
    async def use(index: Index) -> list[list[Passage]]:
        model: ChatModel = ScriptedModel(["The dome closes when the wind is strong."])
        return [
            await recipes.diverse("dome wind", index, k=2),
            await recipes.hyde("dome wind", index, model, k=2),
            await recipes.small_to_big("dome wind", index, k=2),
            await recipes.in_context("dome wind", index, k=2),
            await recipes.auto_merged("dome wind", index, k=2),
        ]

    for found in with_index(tmp_path, use, HashEmbedder()):
        assert "dome" in sources(found)
        assert len(found) <= 2


def test_without_vectors_nothing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search is by words only"):
        with_index(tmp_path, lambda index: recipes.diverse("dome", index))


def test_no_recipe_is_longer_than_twenty_lines() -> None:
    for name, recipe in inspect.getmembers(recipes, inspect.iscoroutinefunction):
        if recipe.__module__ == recipes.__name__:
            assert len(inspect.getsource(recipe).splitlines()) <= 20, name
