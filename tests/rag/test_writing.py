"""An answer as it comes: by a grammar where the model takes one, checked afterwards where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from benchmarks.campaigns.served_model import tiny_model

import tripod
from tests.rag.passages import BLOCKS, LOCKS
from tripod.chat.local import LocalChatModel
from tripod.chat.model import Model
from tripod.chat.scripted import ScriptedModel
from tripod.chat.wrappers import Fallback, Retrying, Timeout
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import CitationError, ConfigError
from tripod.messages import Reply
from tripod.models.load import load_language_model
from tripod.prompts import Prompt
from tripod.rag.answer import Answer
from tripod.rag.ask import stream_answer
from tripod.rag.prompts import ABSTENTION
from tripod.rag.writing import DEFAULT_WRITING, UNCITED_NOTE, Writing, Written, constrains, write
from tripod.retrieval.index import Index
from tripod.sampling import SamplingParams
from tripod.text.load_tokenizer import load_tokenizer
from tripod.trace import Delta, Event

GIVEN = {1: BLOCKS, 2: LOCKS}
T = TypeVar("T")


@dataclass
class Obedient:
    """Says what it was told, and says that it takes grammars: for what happens around a model that does."""

    inner: ScriptedModel
    asked: SamplingParams = SamplingParams()
    constrains: bool = True

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        raise AssertionError("an answer is streamed")

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        self.asked = sampling
        async for event in self.inner.stream(prompt, sampling):
            yield event


def events_of(text: str, writing: Writing = DEFAULT_WRITING, *, is_obedient: bool = False) -> list[Delta | Written]:
    async def play() -> list[Delta | Written]:
        script = ScriptedModel([text])
        model = Obedient(script) if is_obedient else script
        return [event async for event in write("When is a block freed?", GIVEN, model, writing)]

    return asyncio.run(play())


def last(events: list[Delta | Written]) -> Written:
    assert isinstance(events[-1], Written)
    return events[-1]


def test_what_is_streamed_is_what_is_read_with_the_marks_of_a_reader() -> None:
    events = events_of('It says "Locks are not reentrant" [2].', is_obedient=True)
    streamed = "".join(event.text for event in events if isinstance(event, Delta))
    assert streamed == last(events).text == "It says “Locks are not reentrant” [2]."


def test_a_model_that_takes_grammars_is_given_one_and_the_form_of_it() -> None:
    async def play() -> tuple[Obedient, Prompt]:
        model = Obedient(ScriptedModel(["It is so [1]."]))
        async for _ in write("When?", GIVEN, model):
            pass
        return model, model.inner.prompts[0]

    model, prompt = asyncio.run(play())
    assert model.asked.grammar is not None
    assert '"words of the passage, unchanged" [2].' in str(prompt)


def test_a_text_that_the_grammar_would_not_have_allowed_is_refused() -> None:
    with pytest.raises(CitationError, match="not written as it had to be"):
        events_of("It is so.", is_obedient=True)
    with pytest.raises(CitationError, match=r"cites \[3\]"):
        events_of("It is so [3].", is_obedient=True)


def test_other_models_write_freely_and_are_checked() -> None:
    assert last(events_of("Freed at the end [1].")).citations[0].number == 1
    assert last(events_of("In the end.")).notes == (UNCITED_NOTE,)
    assert last(events_of(f"{ABSTENTION} Sorry.")).text == ""


def test_a_model_can_be_taken_at_its_word_or_not() -> None:
    with pytest.raises(CitationError, match="not written as it had to be"):
        events_of("It is so.", Writing(is_constructed=True))
    assert last(events_of("It is so.", Writing(is_constructed=False), is_obedient=True)).text == "It is so."
    with pytest.raises(ConfigError, match="needs a model that takes grammars"):
        events_of("It is so.", Writing(style="quotations"))
    with pytest.raises(ConfigError, match="contradicts"):
        Writing(style="quotations", is_constructed=False)


def test_a_cut_answer_names_what_it_left_out() -> None:
    written = last(events_of("Freed at the end [1]. Locks are not for everyone [2].", Writing(max_tokens=6), is_obedient=True))
    assert written.text == "Freed at the end [1]."
    assert "left out: 'Locks'" in written.notes[0]


def test_every_span_tells_what_it_used() -> None:
    spans = {span.name: span for span in last(events_of("Freed at the end [1].")).trace}
    assert list(spans) == ["prompt", "generate", "check"]
    assert spans["generate"].attributes["usage"].completion_tokens == 5
    assert spans["generate"].attributes["usage"].prompt_tokens > 100
    assert BLOCKS.text in spans["prompt"].attributes["prompt"]


def test_models_in_this_process_take_grammars_and_servers_are_not_assumed_to() -> None:
    assert constrains(Model("some/folder"))
    assert not constrains(Model("http://localhost:1/v1"))
    assert not constrains(ScriptedModel([]))
    wrapped = Retrying(Timeout(Fallback((Model("a"), Model("b"))), 1.0))
    assert constrains(wrapped)
    assert not constrains(replace(wrapped, inner=Fallback((Model("a"), ScriptedModel([])))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), max_positions=4096)


def with_model(folder: Path, use: Callable[[LocalChatModel], T]) -> T:
    async def play() -> T:
        async with Engine(load_language_model(folder), load_tokenizer(folder), EngineConfig(max_num_requests=4), name="tiny") as engine:
            return await use(LocalChatModel(engine))  # type: ignore[misc, no-any-return]

    return asyncio.run(play())


def test_a_real_engine_answers_by_the_grammar_from_an_index(folder: Path, tmp_path: Path) -> None:
    urged = {ord(character): 8.0 for character in ' []."12'}
    writing = Writing(max_tokens=600, max_statements=2, sampling=SamplingParams(temperature=1.0, seed=4, logit_bias=urged))

    async def use(model: LocalChatModel) -> list[Delta | Answer]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.add([tripod.Document(source="blocks", text=BLOCKS.text), tripod.Document(source="locks", text=LOCKS.text)])
            return [event async for event in stream_answer("When is a block freed?", index, model=model, writing=writing)]

    events = with_model(folder, use)
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert answer.kind == "generated"
    assert answer.text.startswith("".join(event.text for event in events if isinstance(event, Delta))[: len(answer.text)])
    assert answer.citations
    assert {citation.source for citation in answer.citations} <= {"blocks", "locks"}
    assert [span.name for span in answer.trace] == ["retrieve", "extract", "prompt", "generate", "check", "locate"]
