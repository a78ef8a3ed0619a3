"""Many passages, one answer: what each prompt shows, what may be cited in it, and that nothing used is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

import pytest

from tests.rag.passages import passage
from tripod.chat.scripted import ScriptedModel
from tripod.errors import CitationError, ConfigError
from tripod.messages import Reply
from tripod.prompts import Prompt
from tripod.rag.prompts import ABSTENTION
from tripod.rag.synthesis import Synthesis, accumulate, grouped, refine, stuff, tree
from tripod.rag.writing import Writing, Written
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, fold

GIVEN = {number: passage(f"Fact {number} is told here.", source=f"{number}.md") for number in range(1, 6)}
SIZE = 6  # approximate tokens of each


def synthesized(synthesis: Synthesis, model: ScriptedModel) -> tuple[str, Written]:
    async def play() -> tuple[str, Written]:
        events = [event async for event in synthesis("What is told?", GIVEN, model, Writing())]
        assert isinstance(events[-1], Written)
        return "".join(event.text for event in events if isinstance(event, Delta)), events[-1]

    return asyncio.run(play())


class ByPassage(ScriptedModel):
    """Answers from the first passage that its prompt shows, whatever the order in which it is asked."""

    def __init__(self) -> None:
        super().__init__([])
        self.prompts = []

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await fold(self.stream(prompt, sampling))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        self.prompts.append(prompt)
        shown = [part.id.partition(".")[0] for part in prompt.parts if part.kind == "passage"]
        text = f"Told in {shown[0]} [{shown[0]}]." if shown else "All of it [1]."
        if shown == ["3"]:
            text = ABSTENTION
        async for event in ScriptedModel([text]).stream(prompt, sampling):
            yield event


def test_passages_are_packed_in_order_and_a_large_one_stands_alone() -> None:
    assert [list(group) for group in grouped(GIVEN, 2 * SIZE + 1)] == [[1, 2], [3, 4], [5]]
    assert [list(group) for group in grouped(GIVEN, 1)] == [[1], [2], [3], [4], [5]]
    assert [list(group) for group in grouped(GIVEN, 1000)] == [[1, 2, 3, 4, 5]]
    with pytest.raises(ConfigError, match="passage_tokens=0"):
        grouped(GIVEN, 0)


def test_stuff_is_one_prompt_over_all() -> None:
    model = ScriptedModel(["Told [5]."])
    streamed, written = synthesized(stuff, model)
    assert streamed == written.text == "Told [5]."
    assert [part.id for part in model.prompts[0].parts if part.kind == "passage"] == [one.id for one in GIVEN.values()]


def test_refine_shows_the_answer_so_far_with_what_it_cites() -> None:
    model = ScriptedModel(["First [2].", "First [2] and third [3].", "All: [2], [3] and [5]."])
    streamed, written = synthesized(partial(refine, passage_tokens=2 * SIZE + 1), model)
    assert streamed == written.text == "All: [2], [3] and [5]."
    shown = [[part.id[0] for part in prompt.parts if part.kind == "passage"] for prompt in model.prompts]
    assert shown == [["1", "2"], ["2", "3", "4"], ["2", "3", "5"]]
    assert "The answer so far: First [2] and third [3]." in str(model.prompts[2])
    assert written.usage.completion_tokens == sum(len(text.split()) for text in ("First [2].", "First [2] and third [3].", written.text))
    assert [span.name for span in written.trace] == ["prompt", "generate", "check"] * 3


def test_refine_keeps_its_answer_where_the_rest_says_nothing() -> None:
    _, written = synthesized(partial(refine, passage_tokens=2 * SIZE + 1), ScriptedModel([ABSTENTION, "Third [3].", ABSTENTION]))
    assert (written.text, [citation.number for citation in written.citations]) == ("Third [3].", [3])


def test_refine_cannot_cite_a_passage_of_a_group_that_was_let_go() -> None:
    with pytest.raises(CitationError, match=r"cites \[1\]"):
        synthesized(partial(refine, passage_tokens=2 * SIZE + 1), ScriptedModel(["First [2].", "Told [1]."]))


def test_tree_merges_answers_of_groups_and_cites_what_they_cited() -> None:
    model = ByPassage()
    _, written = synthesized(partial(tree, passage_tokens=2 * SIZE + 1), model)
    assert written.text == "All of it [1]."
    assert written.citations[0].passage == GIVEN[1]
    merging = str(model.prompts[-1])
    assert all(f"Told in {number} [{number}]." in merging for number in (1, 3, 5))
    assert "Only the numbers 1, 3, 5 exist." in merging
    assert len(written.trace) == 4 * 3


def test_accumulate_asks_each_passage_alone_and_leaves_out_what_does_not_answer() -> None:
    streamed, written = synthesized(accumulate, ByPassage())
    assert written.text == streamed == "\n\n".join(f"Told in {number} [{number}]." for number in (1, 2, 4, 5))
    assert [written.text[c.start : c.end] for c in written.citations] == [f"Told in {number}" for number in (1, 2, 4, 5)]


def test_answers_stand_in_the_order_of_their_passages_whichever_comes_first() -> None:
    class LastFirst(ByPassage):
        async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
            [number] = [int(part.id.partition(".")[0]) for part in prompt.parts if part.kind == "passage"]
            for _ in range(10 * (5 - number)):
                await asyncio.sleep(0)
            async for event in super().stream(prompt, sampling):
                yield event

    model = LastFirst()
    _, written = synthesized(accumulate, model)
    assert "Fact 5" in str(model.prompts[0])
    assert written.text == "\n\n".join(f"Told in {number} [{number}]." for number in (1, 2, 4, 5))


@pytest.mark.parametrize("synthesis", [stuff, refine, tree, accumulate])
def test_nothing_answered_is_an_empty_text(synthesis: Synthesis) -> None:
    _, written = synthesized(synthesis, ScriptedModel([ABSTENTION] * 5))
    assert (written.text, written.citations) == ("", ())


def test_one_failing_group_fails_the_answer_with_its_own_error() -> None:
    with pytest.raises(CitationError, match=r"cites \[9\]"):
        synthesized(accumulate, ScriptedModel(["Told [1].", "Told [9].", "Told [3].", "Told [4].", "Told [5]."]))
