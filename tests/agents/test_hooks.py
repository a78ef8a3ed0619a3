"""Hooks look at a run, change it and stop it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from tripod.agents.agent import Agent
from tripod.agents.hooks import Approve, Budget, Hook, Proceed, Redact, RetryTools
from tripod.agents.memory import Window
from tripod.agents.run import Result, Run
from tripod.agents.tool import tool
from tripod.agents.turns import Called
from tripod.chat.scripted import ScriptedModel
from tripod.errors import AgentError, ConfigError
from tripod.messages import Message, Reply, ToolCall, user

SEARCH = ToolCall("1", "search", '{"city": "Oslo"}')


@tool
async def search(city: str) -> str:
    """Find hotels."""
    return f"{city} Inn"


def run(model: ScriptedModel, *hooks: Hook, tools: Sequence[Any] = (search,), question: str = "Where?") -> Result[str]:
    async def running() -> Result[str]:
        return await Agent(model, tools, hooks=hooks)(question)

    return anyio.run(running)


class Noting(Hook):
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
        self.notes.append(f"{self.name} before model")
        return messages

    async def after_model(self, run: Run[Any], reply: Reply) -> Reply:
        self.notes.append(f"{self.name} after model")
        return reply

    async def around_tool(self, run: Run[Any], call: ToolCall, proceed: Proceed) -> Called:
        self.notes.append(f"{self.name} before tool")
        called = await proceed(call)
        self.notes.append(f"{self.name} after tool")
        return called


def test_the_first_hook_is_the_outermost_at_every_point() -> None:
    notes: list[str] = []
    run(ScriptedModel([SEARCH, "ok"]), Noting("a", notes), Noting("b", notes))
    turn = ["a before model", "b before model", "b after model", "a after model"]
    assert notes == [*turn, "a before tool", "b before tool", "b after tool", "a after tool", *turn]


def test_a_budget_ends_the_run_before_the_next_request() -> None:
    model = ScriptedModel([SEARCH] * 50)
    with pytest.raises(AgentError, match=r"the budget of 200 tokens is used up: \d+ were needed so far") as caught:
        run(model, Budget(tokens=200))
    spent = caught.value.run.usage.total_tokens
    assert spent >= 200
    prompts = [len(str(prompt).split()) for prompt in model.prompts]
    assert sum(prompts[:-1]) < 200  # the last request was still within it


@pytest.mark.parametrize(
    ("answer", "told"), [(True, "Oslo Inn"), (False, "refused this call. Do not"), ("too far", "this call: too far. Do not")]
)
def test_a_person_approves_or_refuses_and_the_model_is_told(answer: bool | str, told: str) -> None:
    asked: list[ToolCall] = []

    async def person(call: ToolCall) -> bool | str:
        asked.append(call)
        return answer

    result = run(ScriptedModel([SEARCH, "ok"]), Approve(person))
    assert asked == [SEARCH]
    assert told in result.messages[2].text
    assert result.value == "ok"


def test_only_the_named_tools_need_a_person() -> None:
    async def nobody(call: ToolCall) -> bool:
        raise AssertionError("must not be asked")

    assert run(ScriptedModel([SEARCH, "ok"]), Approve(nobody, frozenset({"pay"}))).value == "ok"


def test_a_tool_that_may_be_called_twice_is_called_until_it_succeeds() -> None:
    times = 0

    @tool
    async def flaky() -> str:
        """Fails twice."""
        nonlocal times
        times += 1
        if times < 3:
            raise ConnectionError("reset")
        return "at last"

    def once(*hooks: Hook) -> str:
        return run(ScriptedModel([ToolCall("1", "flaky", "{}"), "ok"]), *hooks, tools=[flaky]).messages[2].text

    assert once(RetryTools(frozenset({"flaky"}), wait_s=0.0)) == "at last"
    assert times == 3
    times, waits = 0, list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "sleep", sleep)
        assert once(RetryTools(frozenset({"flaky"}), wait_s=0.5)) == "at last"
    assert waits == [0.5, 1.0]
    times = 0
    assert once(RetryTools(frozenset({"other"}))) == "Error: flaky failed: ConnectionError: reset"
    assert times == 1


def test_a_model_never_reads_a_secret_and_tools_and_people_never_read_its_mark() -> None:
    sent: list[str] = []

    @tool
    async def mail(to: str, body: str) -> str:
        """Send."""
        sent.append(f"{to}: {body}")
        return f"sent to {to} and cc@example.org"

    script = [ToolCall("1", "mail", '{"to": "<email-1>", "body": "\\"hi\\" to <email-2>"}'), "I wrote to <email-1>, copy to <email-3>."]
    model = ScriptedModel(script)
    result = run(model, Redact(), tools=[mail], question="Write to a@example.org about b.c@example.org, then a@example.org again.")
    assert sent == ['a@example.org: "hi" to b.c@example.org']
    assert result.value == "I wrote to a@example.org, copy to cc@example.org."
    assert "@" not in "".join(map(str, model.prompts))
    assert model.prompts[0].messages == (user("Write to <email-1> about <email-2>, then <email-1> again."),)
    assert model.prompts[1].messages[2].text == "sent to <email-1> and <email-3>"


def test_a_secret_is_all_that_its_pattern_matches_and_keeps_its_mark_when_the_history_is_cut() -> None:
    sent: list[str] = []

    @tool
    async def mail(to: str) -> str:
        """Send."""
        sent.append(to)
        return "sent"

    history = [user("Ask first@example.org. " + "x" * 400), Message("assistant", "Yes.")]
    model = ScriptedModel([ToolCall("1", "mail", '{"to": "<email-2>"}'), "to <id-1>"])
    hooks = [Window(tokens=50), Redact({"email": r"[\w.]+@[\w.]+\w", "id": r"(AB|CD)-(\d+)"})]

    async def running() -> Result[str]:
        return await Agent(model, [mail], hooks=hooks)("Write to second@example.org of CD-17.", history=history)

    result = anyio.run(running)
    assert [message.text for message in model.prompts[0].messages] == ["Write to <email-2> of <id-1>."]  # the first is out of the window
    assert sent == ["second@example.org"]
    assert result.value == "to CD-17"


def test_a_secret_with_an_umlaut_is_hidden_in_the_arguments_of_earlier_calls_too() -> None:
    sent: list[str] = []

    @tool
    async def mail(to: str) -> str:
        """Send."""
        sent.append(to)
        return "sent"

    model = ScriptedModel([ToolCall("1", "mail", '{"to": "<email-1>"}'), "ok"])
    result = run(model, Redact(), tools=[mail], question="Write to jörg@example.org.")
    assert sent == ["jörg@example.org"]
    assert json.loads(result.messages[1].tool_calls[0].arguments) == {"to": "jörg@example.org"}
    assert model.prompts[1].messages[1].tool_calls[0].arguments == '{"to": "<email-1>"}'


def test_what_another_hook_recalls_is_hidden_too() -> None:
    class Recalls(Hook):
        async def before_model(self, run: Run[Any], messages: Sequence[Message]) -> Sequence[Message]:
            return [user("Ada is ada@example.org."), *messages]

    model = ScriptedModel(["Write to <email-1>."])
    assert run(model, Recalls(), Redact()).value == "Write to ada@example.org."
    assert model.prompts[0].messages[0].text == "Ada is <email-1>."


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="the pattern of 'id' is no regular expression"):
        Redact({"id": "("})
