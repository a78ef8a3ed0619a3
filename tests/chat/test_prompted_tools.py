"""Tools for a model that only writes text."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest
from jsonschema import Draft202012Validator

from tripod.agents.tool import tool
from tripod.chat.prompted_tools import PromptedTools
from tripod.chat.scripted import ScriptedModel
from tripod.errors import RequestError
from tripod.messages import Message, Reply, ToolCall, ToolSpec, tool_result, user
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import Grammar, SamplingParams
from tripod.trace import fold

ADD = ToolSpec(
    "add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
)
NOW = ToolSpec("now", "The time.", {"type": "object", "properties": {}, "additionalProperties": False})
CALL = '{"next": {"tool": "add", "arguments": {"a": 1}}}'


class Watched(ScriptedModel):
    sampling: SamplingParams

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        self.sampling = sampling
        return await super().complete(prompt, sampling)


def ask(model: ChatModel, prompt: Prompt, sampling: SamplingParams = SamplingParams()) -> Reply:
    async def both() -> Reply:
        return await model.complete(prompt, sampling)

    return asyncio.run(both())


def allowed(inner: Watched, *answers: str) -> list[bool]:
    assert inner.sampling.grammar is not None
    validator = Draft202012Validator(inner.sampling.grammar.schema)
    return [validator.is_valid(json.loads(answer)) for answer in answers]


TEXT = '{"next": {"text": "hi"}}'
WRONG = (
    '{"next": {"tool": "sub", "arguments": {}}}',
    '{"next": {"tool": "add", "arguments": {"a": "x"}}}',
    '{"tool": "now", "arguments": {}}',
)
OTHER = '{"next": {"tool": "now", "arguments": {}}}'


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", [True, True, True]), ("required", [True, True, False]), ("add", [True, False, False])]
)
def test_the_grammar_allows_calls_of_the_tools_that_may_be_chosen_and_nothing_else(choice: str, expected: list[bool]) -> None:
    inner = Watched([CALL])
    reply = ask(PromptedTools(inner), Prompt.of("1 + 1?", tools=(ADD, NOW), tool_choice=choice))
    assert allowed(inner, CALL, OTHER, TEXT) == expected
    assert allowed(inner, *WRONG) == [False] * 3
    [call] = reply.tool_calls
    assert (call.name, call.arguments, reply.text) == ("add", '{"a": 1}', "")


def test_a_text_is_what_the_model_says() -> None:
    assert ask(PromptedTools(ScriptedModel([TEXT])), Prompt.of("Hi", tools=(ADD,))).message == Message("assistant", "hi")


@pytest.mark.parametrize("words", ["plain words", "[1]", '{"next": 3}', '{"next": {"tool": 3}}'])
def test_what_has_neither_form_is_shown_as_it_is(words: str) -> None:
    assert ask(PromptedTools(ScriptedModel([words])), Prompt.of("Hi", tools=(ADD,))).text == words


def test_the_conversation_is_told_in_words_and_the_tools_stand_in_front() -> None:
    inner = Watched(["3"])
    call = ToolCall("1", "add", '{"a": 1}')
    prompt = Prompt.of([user("1 + 1?"), Message("assistant", "Let me see.", (call,)), tool_result(call, "2")], tools=(ADD,))
    ask(PromptedTools(inner), prompt)
    told, *turns = inner.prompts[0].messages
    assert '"name": "add"' in told.text
    assert turns == [user("1 + 1?"), Message("assistant", f"Let me see.\n{CALL}"), user("Result: 2")]
    assert inner.prompts[0].tools == ()


def test_without_tools_to_choose_the_prompt_is_passed_on() -> None:
    inner = Watched(["a", "b"])
    ask(PromptedTools(inner), Prompt.of("Hi"), SamplingParams(grammar=Grammar.regex("a")))
    ask(PromptedTools(inner), Prompt.of("Hi", tools=(ADD,), tool_choice="none"))
    assert [prompt.messages for prompt in inner.prompts] == [(user("Hi"),)] * 2


def test_a_grammar_beside_tools_is_refused() -> None:
    with pytest.raises(RequestError, match="at once"):
        ask(PromptedTools(ScriptedModel([])), Prompt.of("Hi", tools=(ADD,)), SamplingParams(grammar=Grammar.regex("a")))


def test_a_stream_is_the_same_reply() -> None:
    reply = asyncio.run(fold(PromptedTools(ScriptedModel([CALL])).stream(Prompt.of("1 + 1?", tools=(ADD,)), SamplingParams())))
    assert reply.tool_calls[0].name == "add"


@dataclass
class Place:
    city: str


@dataclass
class Number:
    number: int


Number.__name__ = Number.__qualname__ = "Place"


def test_the_schemas_of_two_tools_may_define_the_same_name() -> None:
    @tool
    async def go(to: Place) -> None:
        """Go."""

    @tool
    async def count(what: Number) -> None:
        """Count."""

    assert list(go.spec.parameters["$defs"]) == list(count.spec.parameters["$defs"]) == ["Place"]
    inner = Watched(["hi"])
    ask(PromptedTools(inner), Prompt.of("?", tools=(go.spec, count.spec)))
    bern, one = '{"city": "Bern"}', '{"number": 1}'
    calls = [("go", f'{{"to": {bern}}}'), ("go", f'{{"to": {one}}}'), ("count", f'{{"what": {one}}}'), ("count", f'{{"what": {bern}}}')]
    answers = [f'{{"next": {{"tool": "{tool}", "arguments": {arguments}}}}}' for tool, arguments in calls]
    assert allowed(inner, *answers) == [True, False, True, False]
