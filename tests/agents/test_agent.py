"""A run of an agent, with a script in the model's place: from a question to a typed result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

import tripod
from tripod.agents.agent import Agent
from tripod.agents.context import Context
from tripod.agents.run import Result, ToolFinished, ToolStarted
from tripod.agents.tool import tool
from tripod.agents.turns import Limits
from tripod.chat.scripted import ScriptedModel
from tripod.errors import AgentError, ConfigError, EngineError
from tripod.messages import Message, ToolCall, assistant, user
from tripod.trace import Delta, recording

SCRIPT = str | ToolCall | tuple[ToolCall, ...] | Message | Exception


@dataclass
class Trip:
    city: str
    cost: float


@tool
async def search(city: str) -> list[str]:
    """Find hotels."""
    return [f"{city} Inn", f"{city} Palace"]


@tool
async def convert(amount: float, to: str = "EUR") -> float:
    """Change money."""
    return amount / 10


def run(agent: Agent[Any], question: str = "Two days in Oslo", **options: Any) -> Result[Any]:
    async def running() -> Result[Any]:
        return await agent(question, **options)

    return anyio.run(running)


def call(name: str, arguments: str = "{}", id: str = "c") -> ToolCall:
    return ToolCall(id, name, arguments)


def test_without_a_type_the_answer_is_what_the_model_says() -> None:
    result = run(Agent(ScriptedModel(["Take the train."])))
    assert result.value == "Take the train."
    assert result.messages == (user("Two days in Oslo"), assistant("Take the train."))


def test_a_model_calls_a_tool_reads_its_result_and_hands_over_a_value() -> None:
    model = ScriptedModel([call("search", '{"city": "Oslo"}', "1"), call("answer", '{"city": "Oslo", "cost": 399.5}', "2")])
    result = run(tripod.Agent(model, [search, convert], returns=Trip, instructions="Be thrifty."))
    assert result.value == Trip("Oslo", 399.5)
    assert result.messages == (
        user("Two days in Oslo"),
        Message("assistant", "", (call("search", '{"city": "Oslo"}', "1"),)),
        Message("tool", '["Oslo Inn","Oslo Palace"]', tool_call_id="1"),
        Message("assistant", "", (call("answer", '{"city": "Oslo", "cost": 399.5}', "2"),)),
        Message("tool", "Accepted.", tool_call_id="2"),
    )
    first, second = model.prompts
    assert first.messages == (Message("system", "Be thrifty."), user("Two days in Oslo"))
    assert second.messages[1:] == result.messages[:3]
    assert [spec.name for spec in first.tools] == ["search", "convert", "answer"]
    assert first.tool_choice == "required"


class Typed(TypedDict):
    city: str
    cost: float


class Modelled(BaseModel):
    city: str
    cost: float


@pytest.mark.parametrize(
    ("returns", "arguments", "value"),
    [
        (Typed, '{"city": "Oslo", "cost": 1.0}', {"city": "Oslo", "cost": 1.0}),
        (Modelled, '{"city": "Oslo", "cost": 1.0}', Modelled(city="Oslo", cost=1.0)),
        (list[int], '{"value": [1, 2]}', [1, 2]),
        (bool, '{"value": true}', True),
    ],
)
def test_a_result_can_be_of_any_type_that_json_holds(returns: Any, arguments: str, value: object) -> None:
    assert run(Agent(ScriptedModel([call("answer", arguments)]), returns=returns)).value == value


def test_a_value_that_was_written_instead_of_handed_over_counts() -> None:
    assert run(Agent(ScriptedModel(['{"city": "Oslo", "cost": 2}']), returns=Trip)).value == Trip("Oslo", 2.0)


def test_a_wrong_answer_is_said_to_be_wrong_and_asked_for_again() -> None:
    model = ScriptedModel(["I like Oslo.", call("answer", '{"city": "Oslo"}'), call("answer", '{"city": "Oslo", "cost": 2}')])
    result = run(Agent(model, returns=Trip))
    assert result.value == Trip("Oslo", 2.0)
    assert "Invalid JSON" in result.messages[2].text
    assert "Call the tool 'answer'" in result.messages[2].text
    assert result.messages[4].text == "Error: cost: Field required (given {'city': 'Oslo'})"


def test_calls_beside_the_answer_are_made_and_each_call_has_its_result_in_order() -> None:
    seen: list[str] = []

    @tool
    async def note(text: str) -> None:
        """Write down."""
        seen.append(text)

    calls = (call("note", '{"text": "a"}', "1"), call("answer", '{"value": 3}', "2"), call("note", '{"text": "b"}', "3"))
    result = run(Agent(ScriptedModel([calls]), [note], returns=int))
    assert result.value == 3
    assert seen == ["a", "b"]
    assert [message.tool_call_id for message in result.messages[2:]] == ["1", "2", "3"]


def test_a_conversation_goes_on_with_the_messages_of_the_last_result() -> None:
    model = ScriptedModel(["Oslo.", "Bergen."])
    agent = Agent(model)
    first = run(agent, "Capital?")
    second = run(agent, "And the rain?", history=first.messages)
    assert model.prompts[1].messages == (user("Capital?"), assistant("Oslo."), user("And the rain?"))
    assert second.messages == (*model.prompts[1].messages, assistant("Bergen."))


def test_a_stream_shows_every_step_and_ends_with_the_result_of_the_same_run() -> None:
    script: list[SCRIPT] = [call("search", '{"city": "Oslo"}'), "Oslo Inn it is."]

    async def events() -> list[Any]:
        async with aclosing(Agent(ScriptedModel(script), [search]).stream("Where?")) as stream:
            return [event async for event in stream]

    seen = anyio.run(events)
    kinds = [type(event) for event in seen if not isinstance(event, Delta)]
    assert kinds == [ToolStarted, ToolFinished, Result]
    assert "".join(event.text for event in seen if isinstance(event, Delta)) == "Oslo Inn it is."
    whole = run(Agent(ScriptedModel(script), [search]), "Where?")
    assert (seen[-1].value, seen[-1].messages, seen[-1].usage) == (whole.value, whole.messages, whole.usage)


def test_the_trace_holds_the_prompt_the_reply_and_each_call() -> None:
    model = ScriptedModel([call("search", '{"city": "Oslo"}'), "Done."])
    result = run(Agent(model, [search], name="guide"))
    [span] = result.trace
    assert [child.name for child in span.children] == ["model", "tool", "model"]
    assert span.children[0].attributes["prompt"] is model.prompts[0]
    assert span.children[1].attributes["arguments"] == '{"city": "Oslo"}'
    assert span.children[1].attributes["result"] == '["Oslo Inn","Oslo Palace"]'
    assert span.duration_s >= sum(child.duration_s for child in span.children)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_a_model_was_asked_that_failed_is_in_the_trace(is_streamed: bool) -> None:
    async def ask() -> None:
        async with aclosing(Agent(ScriptedModel([EngineError("out of memory")])).stream("Why?")) as events:
            async for _ in events:
                pass

    with recording() as spans, pytest.raises(EngineError):
        anyio.run(ask) if is_streamed else run(Agent(ScriptedModel([EngineError("out of memory")])), "Why?")
    [asked] = spans[0].children
    assert (asked.name, asked.attributes["error"], spans[0].attributes["error"]) == ("model", *["EngineError: out of memory"] * 2)
    assert asked.attributes["prompt"].messages == (user("Why?"),)


def test_usage_is_that_of_all_replies() -> None:
    model = ScriptedModel([call("search", '{"city": "Oslo"}'), "Done at last."])
    result = run(Agent(model, [search]))
    replies = [span.attributes["reply"].usage for span in result.trace[0].children if span.name == "model"]
    assert result.usage == replies[0] + replies[1]
    assert replies[1].completion_tokens == 3


def test_dependencies_reach_the_tools_and_are_checked_before_anything_is_asked() -> None:
    @tool
    async def lookup(key: str, context: Context[dict[str, int]]) -> int:
        """Look up."""
        return context.deps[key]

    model = ScriptedModel([call("lookup", '{"key": "a"}'), "7"])
    agent = Agent(model, [lookup])
    with pytest.raises(ConfigError, match="the tool lookup needs deps of type dict, and was given NoneType"):
        run(agent)
    assert model.prompts == []
    assert run(agent, deps={"a": 7}).messages[2].text == "7"
    for above in (Agent(model, [agent]), Agent(model, handoffs=[Agent(model, name="b", handoffs=[agent])])):  # whoever may come to call it
        with pytest.raises(ConfigError, match="the tool lookup needs deps of type dict"):
            run(above)


def test_an_agent_is_a_tool_of_another_and_what_it_spends_and_does_is_the_callers() -> None:
    inner = ScriptedModel([call("search", '{"city": "Oslo"}'), "Two hotels."])
    researcher = Agent(inner, [search], name="researcher", description="Finds things out.")
    outer = ScriptedModel([call("researcher", '{"task": "hotels in Oslo"}'), "There are two."])
    result = run(Agent(outer, [researcher]))
    assert outer.prompts[0].tools[0].description == "Finds things out."
    assert inner.prompts[0].messages == (user("hotels in Oslo"),)
    assert result.messages[2].text == "Two hotels."
    assert [span.name for span in result.trace[0].children[1].walk()] == ["tool", "agent", "model", "tool", "model"]
    spent = [span.attributes["reply"].usage.total_tokens for span in result.trace[0].walk() if span.name == "model"]
    assert len(spent) == 4
    assert result.usage.total_tokens == sum(spent)


def test_a_conversation_is_handed_over_and_the_other_agent_answers_with_its_own_tools() -> None:
    booking = ScriptedModel([call("convert", '{"amount": 50}'), call("answer", '{"city": "Oslo", "cost": 5}')])
    booker = Agent(booking, [convert], returns=Trip, name="booker", instructions="You book.", description="Books.")
    front = ScriptedModel([call("hand_over_to_booker")])
    result = run(Agent(front, returns=Trip, instructions="You greet.", handoffs=[booker]))
    assert result.value == Trip("Oslo", 5.0)
    assert front.prompts[0].tools[0].description == "Give the conversation to booker. Books."
    assert booking.prompts[0].messages[0].text == "You book."
    assert booking.prompts[0].messages[1:] == result.messages[:3]
    assert [spec.name for spec in booking.prompts[0].tools] == ["convert", "answer"]


def test_agents_of_different_results_cannot_hand_over() -> None:
    with pytest.raises(ConfigError, match="give both the same"):
        Agent(ScriptedModel([]), returns=Trip, handoffs=[Agent(ScriptedModel([]))])  # type: ignore[list-item]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tools of agent have the name 'search'"):
        Agent(ScriptedModel([]), [search, search])


def test_one_agent_runs_many_times_at_once() -> None:
    async def both() -> Sequence[str]:
        agent = Agent(ScriptedModel([call("search", '{"city": "Oslo"}'), call("search", '{"city": "Rome"}'), "one", "two"]), [search])
        values: list[str] = []

        async def one() -> None:
            values.append((await agent("Where?")).value)

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
        return values

    assert sorted(anyio.run(both)) == ["one", "two"]


def test_a_model_that_calls_forever_is_stopped_and_what_was_done_is_kept() -> None:
    model = ScriptedModel([call("search", '{"city": "Oslo"}')] * 5)
    with pytest.raises(AgentError, match="no answer after turns=4") as caught:
        run(Agent(model, [search], limits=Limits(turns=4)))
    assert len(model.prompts) == 4
    assert len([span for span in caught.value.run.spans if span.name == "tool"]) == 4


def test_plain_functions_are_tools_too() -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    result = run(Agent(ScriptedModel([call("add", '{"a": 2, "b": 3}'), "5"]), [add]))
    assert result.messages[2].text == "5"


def test_the_prompt_can_be_seen_before_anyone_pays() -> None:
    shown = str(Agent(ScriptedModel([]), [search], instructions="Be brief.").prompt([user("Where?")]))
    assert shown.startswith("[tool search]\nFind hotels.\n")
    assert shown.endswith("[system]\nBe brief.\n\n[user]\nWhere?")
