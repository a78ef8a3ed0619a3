"""Summaries, an index of them that follows the documents, and a search that goes through it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tripod.chat.scripted import ScriptedModel
from tripod.documents import Document, Passage
from tripod.errors import ConfigError
from tripod.rag.summaries import SummaryReport, by_summary, extracted, summarized, sync_summaries
from tripod.retrieval.index import Index

DOME = Document(
    source="dome",
    text="The dome protects the telescope. It was painted in spring. The dome closes when wind shakes the telescope. Lunch is at noon.",
)
MOON = Document(source="moon", text="The moon is far away. The moon has craters. A crater of the moon may hold ice.")


def test_extracted_sentences_say_what_the_document_speaks_of_and_not_the_same_twice() -> None:
    assert extracted(DOME, 1) == "The dome closes when wind shakes the telescope."
    two = extracted(DOME, 2)
    assert two.startswith("The dome protects the telescope.") or two.endswith("The dome closes when wind shakes the telescope.")
    assert "Lunch" not in two
    said_twice = "The red dome closes in strong wind today. The red dome closes in strong wind always. The mirror is silvered every spring."
    assert "mirror" in extracted(Document(source="twice", text=said_twice), 2)
    assert extracted(Document(source="empty", text="")) == ""
    with pytest.raises(ConfigError, match="num_sentences=0"):
        extracted(DOME, 0)


def test_a_long_document_is_summed_up_in_parts_and_then_as_a_whole() -> None:
    long = Document(source="long", text="\n\n".join(f"Paragraph {n} tells of the dome. " * 60 for n in range(12)))
    model = ScriptedModel([f"Part {n}." for n in range(100)])
    assert asyncio.run(summarized(long, model)) == f"Part {len(model.prompts) - 1}."
    assert len(model.prompts) > 2
    assert "Part 0.\n\nPart 1." in str(model.prompts[-1])
    assert asyncio.run(summarized(Document(source="empty", text=" "), ScriptedModel([]))) == ""


def test_a_model_that_does_not_shorten_comes_to_an_end() -> None:
    long = Document(source="long", text="word. " * 9000)
    assert asyncio.run(summarized(long, ScriptedModel(["word. " * 3000] * 100)))


def test_only_what_changed_is_summed_up_again(tmp_path: Path) -> None:
    async def play() -> list[SummaryReport]:
        async with Index(tmp_path / "kb.db", embedder=None) as index, Index(tmp_path / "summaries.db", embedder=None) as summaries:
            await index.add([DOME, MOON])
            reports = [await sync_summaries(index, summaries), await sync_summaries(index, summaries)]
            await index.add([Document(source="dome", text="The dome was sold.")])
            await index.store.remove("moon")
            return [*reports, await sync_summaries(index, summaries)]

    first, second, third = asyncio.run(play())
    assert (first.written, first.unchanged, first.removed) == (("dome", "moon"), (), ())
    assert (second.written, second.unchanged) == ((), ("dome", "moon"))
    assert (third.written, third.unchanged, third.removed) == (("dome",), (), ("moon",))


def test_passages_come_from_documents_whose_summaries_fit(tmp_path: Path) -> None:
    async def play() -> list[Passage]:
        async with Index(tmp_path / "kb.db", embedder=None) as index, Index(tmp_path / "summaries.db", embedder=None) as summaries:
            await index.add([DOME, MOON])
            await sync_summaries(index, summaries, ScriptedModel(["About lunch.", "About the moon's ice."]))
            return await by_summary("Lunch?", index, summaries, num_sources=1)

    assert [passage.source for passage in asyncio.run(play())] == ["dome"]
