"""Tools and models that misbehave: the model is told, the run goes on, and it ends where it must."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from tripod.agents.agent import Agent
from tripod.agents.run import Result
from tripod.agents.tool import tool
from tripod.agents.turns import Limits
from tripod.chat.scripted import ScriptedModel
from tripod.errors import AgentError
from tripod.messages import Content, ToolCall, ToolSpec
from tripod.protocols import ToolContext


@tool
async def fine(x: int = 0) -> int:
    """Fine."""
    return x


@tool
async def raises() -> None:
    """Raises."""
    raise KeyError("no such row")


@tool(timeout_s=0.02)
async def hangs() -> None:
    """Hangs."""
    await anyio.sleep_forever()


@tool
async def floods() -> str:
    """Returns 100 MB."""
    return "x" * 100_000_000


@tool
async def lies() -> int:
    """Says int."""
    return "seven"  # type: ignore[return-value]


@tool
async def complains() -> str:
    """Raises with 1 MB of words."""
    raise ValueError("y" * 1_000_000)


TOOLS = [fine, raises, hangs, floods, lies, complains]


def run(*script: Any, **options: Any) -> Result[str]:
    async def running() -> Result[str]:
        return await Agent(ScriptedModel(script), TOOLS, **options)("go")

    return anyio.run(running)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("1", "raises", "{}"), "Error: raises failed: KeyError: 'no such row'"),
        (ToolCall("1", "hangs", "{}"), "Error: hangs took too long and was stopped"),
        (ToolCall("1", "lies", "{}"), "Error: lies did not return what it says to return"),
        (ToolCall("1", "unknown", "{}"), "Error: there is no tool 'unknown'; the tools are: fine, raises"),
        (ToolCall("1", "fine", '{"x": 1'), "Error: the arguments are not valid JSON"),
        (ToolCall("1", "fine", "[1]"), "Error: the arguments are list, not an object"),
        (ToolCall("1", "fine", '{"x": "many"}'), "Error: the arguments are wrong:\nx: Input should be a valid integer"),
        (ToolCall("1", "fine", '{"y": 1}'), "y: Extra inputs are not permitted"),
    ],
)
def test_a_failing_call_is_told_to_the_model_kept_in_the_trace_and_the_run_goes_on(call: ToolCall, told: str) -> None:
    result = run(call, "then so")
    assert result.value == "then so"
    assert told in result.messages[2].text
    [span] = [span for span in result.trace[0].children if span.name == "tool"]
    assert told in span.attributes["error"]


def test_empty_arguments_are_none() -> None:
    assert run(ToolCall("1", "fine", ""), "ok").messages[2].text == "0"


def test_a_result_of_100_mb_is_cut_and_the_model_is_told_how_much_is_missing() -> None:
    text = run(ToolCall("1", "floods", "{}"), "ok").messages[2].text
    assert len(text) < 51_000
    assert text.endswith("[cut: 50000 of 100000000 characters; ask for less at once]")


def test_an_error_with_a_flood_of_words_is_cut_too() -> None:
    assert len(run(ToolCall("1", "complains", "{}"), "ok").messages[2].text) < 51_000


def test_three_mistakes_in_a_row_end_the_run_with_the_last_of_them() -> None:
    with pytest.raises(AgentError, match="3 replies in a row had a mistake; the last: Error: there is no tool 'unknown'"):
        run(*[ToolCall("1", "unknown", "{}")] * 4)


def test_mistakes_between_calls_that_went_well_do_not_add_up() -> None:
    bad, good = ToolCall("1", "raises", "{}"), ToolCall("2", "fine", "{}")
    assert run(bad, bad, good, bad, bad, good, "done").value == "done"


def test_calls_of_one_reply_run_at_once_up_to_the_limit_and_keep_their_order() -> None:
    running = most = 0

    class Slow:
        spec = ToolSpec("slow", "", {"type": "object"})

        async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Content:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(0.002 * (10 - arguments["n"]))
            running -= 1
            return str(arguments["n"])

    calls = tuple(ToolCall(f"{n}", "slow", f'{{"n": {n}}}') for n in range(10))

    async def go() -> Result[str]:
        return await Agent(ScriptedModel([calls, "done"]), [Slow()], limits=Limits(parallel=4))("go")

    result = anyio.run(go)
    assert most == 4
    assert [message.text for message in result.messages[2:12]] == [str(n) for n in range(10)]


def test_one_failing_call_does_not_stop_its_neighbours() -> None:
    result = run((ToolCall("1", "raises", "{}"), ToolCall("2", "fine", '{"x": 5}'), ToolCall("3", "hangs", "{}")), "done")
    assert [message.text.split(":")[0] for message in result.messages[2:5]] == ["Error", "5", "Error"]
