"""A prompt keeps its parts and shows everything."""

from __future__ import annotations

import pytest

from tripod.errors import RequestError
from tripod.messages import File, Message, ToolCall, ToolSpec, system, user
from tripod.prompts import Part, Prompt


def test_neighbouring_parts_of_one_role_become_one_message() -> None:
    prompt = Prompt(
        (
            Part("Answer from the passages.", "system", "system"),
            Part("Passage one.", "user", "passage", id="a#0-12"),
            Part("Passage two.", "user", "passage", id="a#12-24"),
            Part("Why?", "user", "question"),
        )
    )
    assert prompt.messages == (system("Answer from the passages."), user("Passage one.\n\nPassage two.\n\nWhy?"))


def test_a_conversation_comes_back_as_it_went_in() -> None:
    conversation = (
        system("Be brief."),
        user("First."),
        user("Second."),  # two turns of one person stay two turns
        Message("assistant", "", tool_calls=(ToolCall("call-1", "search", "{}"),)),
        Message("tool", "found", tool_call_id="call-1"),
        user("See ", File(media_type="image/png", url="https://example.org/a.png"), " and say."),
        Message("assistant", "Done.", reasoning="It is a cat.", signature="c2ln"),
    )
    assert Prompt.of(conversation).messages == conversation


def test_a_prompt_prints_every_word_that_a_model_will_read() -> None:
    prompt = Prompt.of([system("Be brief."), user("What is a block?")])
    assert str(prompt) == "[system]\nBe brief.\n\n[user]\nWhat is a block?"


def test_a_file_stands_where_its_part_stands() -> None:
    picture = File(media_type="image/png", data=b"\x89PNG", name="cat.png")
    prompt = Prompt((Part("Look:"), Part(file=picture), Part("What is it?"), Part("Be brief.")))
    assert prompt.messages == (user("Look:", picture, "What is it?\n\nBe brief."),)
    assert str(prompt) == "[user]\nLook:<cat.png: image/png, 4 bytes>What is it?\n\nBe brief."


def test_a_prompt_prints_its_tools_because_a_model_reads_them() -> None:
    tool = ToolSpec("add", "Adds.", {"type": "object"})
    assert str(Prompt.of("2 + 2?", tools=(tool,))) == '[tool add]\nAdds.\n{"type": "object"}\n\n[user]\n2 + 2?'


def test_a_choice_of_a_tool_that_is_not_offered_is_refused() -> None:
    with pytest.raises(RequestError, match="'multiply' fits none of the tools, which are: add"):
        Prompt.of("2 * 2?", tools=(ToolSpec("add", "Adds.", {"type": "object"}),), tool_choice="multiply")
    with pytest.raises(RequestError, match="fits none of the tools, which are: none"):
        Prompt.of("2 * 2?", tool_choice="required")


def test_a_choice_can_be_made_later() -> None:
    offered = Prompt.of("2 + 2?", tools=(ToolSpec("add", "Adds.", {"type": "object"}),))
    assert Prompt.of(offered, tool_choice="add").tool_choice == "add"
    assert Prompt.of(offered) is offered


def test_a_string_is_a_question() -> None:
    assert Prompt.of("What is a block?").parts == (Part("What is a block?", "user", "question"),)


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(RequestError, match="no message"):
        Prompt.of([])
