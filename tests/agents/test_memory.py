"""A conversation is cut where it may be, summarized when it is long, and facts outlive it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.agents.agent import Agent
from tripod.agents.memory import Memory, Summarize, Window, fitting, num_tokens
from tripod.chat.saved import load_messages, save_messages
from tripod.chat.scripted import ScriptedModel
from tripod.errors import ConfigError
from tripod.messages import File, Message, ToolCall, assistant, user
from tripod.retrieval.index import Index


def words(text: str) -> int:
    return len(text.split())


CALL = ToolCall("1", "search", '{"q": 1}')  # two words with its name
TALK = [
    user("one two three"),
    Message("assistant", "", (CALL,)),
    Message("tool", "four five", tool_call_id="1"),
    assistant("six"),
    user("seven eight"),
    assistant("nine ten"),
    user("eleven"),
]


@pytest.mark.parametrize(("tokens", "begin"), [(100, 0), (14, 0), (13, 0), (12, 4), (5, 4), (4, 6), (1, 6), (0, 6)])
def test_the_end_that_fits_begins_with_a_turn_of_the_person(tokens: int, begin: int) -> None:
    """The messages have 3, 2, 2, 1, 2, 2 and 1 words, the call counted as its name and arguments run together."""
    assert [num_tokens(message, words) for message in TALK] == [3, 2, 2, 1, 2, 2, 1]
    assert fitting(TALK, tokens, words) == begin


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.integers(0, 9)), max_size=20), st.integers(0, 60))
def test_what_fits_is_the_longest_end_that_does(turns: list[tuple[str, int]], tokens: int) -> None:
    messages = [Message(role, "w " * size) for role, size in turns]  # type: ignore[arg-type]
    begins = [i for i, message in enumerate(messages) if message.role == "user"]
    expected = next((i for i in begins if sum(num_tokens(m, words) for m in messages[i:]) <= tokens), begins[-1] if begins else 0)
    assert fitting(messages, tokens, words) == expected


def test_a_window_shows_the_end_and_the_run_keeps_everything() -> None:
    model = ScriptedModel(["twelve"])
    result = asyncio.run(Agent(model, hooks=[Window(5, words)], instructions="Be brief.")("eleven", history=TALK[:-1]))
    assert model.prompts[0].messages == (Message("system", "Be brief."), *TALK[4:])
    assert result.messages == (*TALK, assistant("twelve"))


def test_a_long_conversation_goes_on_with_a_summary_whose_cost_is_counted() -> None:
    summarizer, model = ScriptedModel(["They counted to six."]), ScriptedModel(["twelve"])
    hook = Summarize(summarizer, tokens=12, keep=5, count=words)
    result = asyncio.run(Agent(model, hooks=[hook])("eleven", history=TALK[:-1]))
    begun = (user("Summary of the conversation so far:\nThey counted to six."), *TALK[4:])
    assert model.prompts[0].messages == begun
    assert result.messages == (*begun, assistant("twelve"))
    assert "user: one two three\ntool: four five\nassistant: six" in str(summarizer.prompts[0])
    asked = len(str(summarizer.prompts[0]).split()) + len(str(model.prompts[0]).split())
    assert result.usage.prompt_tokens == asked


def test_a_short_conversation_is_not_summarized() -> None:
    asyncio.run(
        Agent(ScriptedModel(["twelve"]), hooks=[Summarize(ScriptedModel([]), tokens=13, keep=5, count=words)])("eleven", history=TALK[:-1])
    )
    with pytest.raises(ConfigError, match="keep=9 must be above 0 and below tokens=9"):
        Summarize(ScriptedModel([]), tokens=9, keep=9)


def test_facts_outlive_the_conversation_and_belong_to_their_owner(tmp_path: Path) -> None:
    async def talk() -> tuple[ScriptedModel, ScriptedModel]:
        async with Index(tmp_path / "memory.db", embedder=None) as index:
            first = ScriptedModel([ToolCall("1", "remember", '{"fact": "Ada is allergic to peanuts."}'), "Noted."])
            memory = Memory(index, owner="ada")
            await Agent(first, memory.tools)("I cannot eat peanuts.")
            await Memory(index, owner="bob").remember("Bob loves peanuts.")
        async with Index(tmp_path / "memory.db", embedder=None) as index:
            memory = Memory(index, owner="ada")
            silent = ScriptedModel(["Of course."])
            await Agent(silent, hooks=[Memory(index, owner="ada", k=0)])("May I have a snack with peanuts?")
            assert len(silent.prompts[0].messages) == 1
            second = ScriptedModel([ToolCall("1", "recall", '{"question": "peanuts"}'), "Try the rice."])
            await Agent(second, memory.tools, hooks=[memory])("May I have a snack with peanuts?")
        return first, second

    _, second = asyncio.run(talk())
    known, question = second.prompts[0].messages
    assert known.text == "Known from earlier conversations:\n- Ada is allergic to peanuts."
    assert question.text == "May I have a snack with peanuts?"
    assert second.prompts[1].messages[-1].text == '["Ada is allergic to peanuts."]'


def test_a_saved_conversation_is_read_back_as_it_was(tmp_path: Path) -> None:
    messages = [
        *TALK,
        user("see", File(media_type="image/png", data=bytes(range(256)), name="a.png")),
        Message("assistant", "ja\n", reasoning="hm", signature="s"),
    ]
    save_messages(messages, tmp_path / "u1.jsonl")
    assert load_messages(tmp_path / "u1.jsonl") == tuple(messages)
    assert load_messages(tmp_path / "nobody.jsonl") == ()
    (tmp_path / "bad.jsonl").write_text('{"role": "king", "content": ""}\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl is no saved conversation"):
        load_messages(tmp_path / "bad.jsonl")
