"""Questions that lean on what was said before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tripod.chat.scripted import ScriptedModel
from tripod.documents import Document
from tripod.errors import ConfigError
from tripod.messages import assistant, user
from tripod.rag.answer import Answer
from tripod.rag.conversation import Conversation, converse, standalone
from tripod.retrieval.index import Index

TALK = Conversation().then("When does the dome close?", "In strong wind.").then("And when does it open?", "After ten minutes.")


def test_a_first_question_is_asked_as_it_is() -> None:
    model = ScriptedModel([])
    assert asyncio.run(standalone("When does the dome close?", Conversation(), model)) == "When does the dome close?"
    assert model.prompts == []


def test_a_follow_up_is_rewritten_from_the_history() -> None:
    model = ScriptedModel(["Who closes the dome?\nBecause it says so."])
    assert asyncio.run(standalone("Who does that?", TALK, model)) == "Who closes the dome?"
    assert "user: When does the dome close?\nassistant: In strong wind.\nuser: And when does it open?" in str(model.prompts[0])
    assert str(model.prompts[0]).endswith("The last question: Who does that?")


def test_a_model_that_writes_nothing_leaves_the_question_as_it_is() -> None:
    assert asyncio.run(standalone("Who does that?", TALK, ScriptedModel([" \n"]))) == "Who does that?"


def test_only_whole_exchanges_that_fit_are_shown() -> None:
    short = Conversation(messages=TALK.messages, max_history_tokens=16)
    assert short.recent == (user("And when does it open?"), assistant("After ten minutes."))
    assert Conversation(messages=TALK.messages, max_history_tokens=0).recent == ()
    assert TALK.recent == TALK.messages


def test_what_is_no_conversation_is_refused() -> None:
    with pytest.raises(ConfigError, match="in turn"):
        Conversation(messages=(user("a"), user("b")))
    with pytest.raises(ConfigError, match="negative"):
        Conversation(max_history_tokens=-1)


def test_the_answer_is_of_the_rewritten_question_and_the_talk_goes_on(tmp_path: Path) -> None:
    async def play() -> tuple[Answer, Conversation]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.add([Document(source="dome", text="The dome closes in strong wind. The engineer closes the dome by hand.")])
            model = ScriptedModel(["Who closes the dome?", "The engineer does [1]."])
            return await converse("Who does that?", TALK, index, model=model, min_confidence=0.0)

    answer, talk = asyncio.run(play())
    assert (answer.question, answer.text) == ("Who closes the dome?", "The engineer does [1].")
    assert talk.messages[-2:] == (user("Who does that?"), assistant("The engineer does [1]."))
