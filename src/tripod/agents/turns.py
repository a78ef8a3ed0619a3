"""The loop of an agent, without input and output: it says what it needs, and is sent what came of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tripod.chat.shape import Shape, WrongValueError
from tripod.errors import AgentError, ConfigError
from tripod.messages import Message, Reply, ToolCall, ToolSpec, tool_result, user

if TYPE_CHECKING:
    from tripod.agents.run import Run

T = TypeVar("T")

ANSWER = "answer"  # the tool by which a model gives a result that is no text


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends a run that does not end by itself."""

    turns: int = 20  # replies of the model
    failures: int = 3  # in a row: calls that failed, and answers that are not what was asked for
    parallel: int = 8  # calls of one reply that run at once
    result_chars: int = 50_000  # of one result; what is longer is cut, and the model is told

    def __post_init__(self) -> None:
        for name in ("turns", "failures", "parallel", "result_chars"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} lets nothing happen; give at least 1")


@dataclass(frozen=True, slots=True)
class Ask:
    """Wanted: the model's Reply to `run.messages`."""


@dataclass(frozen=True, slots=True)
class Call:
    """Wanted: for each call a `Called`, in their order."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Called:
    """What came of a call."""

    message: Message
    is_failed: bool = False


Want: TypeAlias = Ask | Call


def answer_tool(shape: Shape[Any]) -> ToolSpec:
    return ToolSpec(ANSWER, "Give the final answer and end the work.", shape.schema)


def turns(run: Run[T]) -> Generator[Want, Any, T]:
    """From a question at the end of `run.messages` to the answer; every message on the way is put there. A hand-off changes `run.active`.

    Raises:
        AgentError: the limits are used up.
    """
    failures = 0
    for _ in range(run.limits.turns):
        reply: Reply = yield Ask()
        run.messages.append(reply.message)
        complaint = None
        calls = reply.tool_calls
        shape, handoffs = run.active.shape, run.active.handoffs  # whoever was asked
        if not calls:
            if shape is None:
                return reply.text  # type: ignore[return-value]  # T is str
            try:
                return shape.read(reply.text)  # some models write what they were asked to hand over
            except WrongValueError as error:
                complaint = f"That is not the answer: {error}\nCall the tool {ANSWER!r} to give it."
                run.messages.append(user(complaint))
        else:
            answers = [call for call in calls if call.name == ANSWER] if shape is not None else []
            others = tuple(call for call in calls if call not in answers and call.name not in handoffs)
            results: Iterator[Called] = iter((yield Call(others)) if others else ())
            value: list[T] = []
            for call in calls:  # one result each, in the order of the calls
                if call.name in handoffs:
                    run.active = handoffs[call.name]
                    called = Called(tool_result(call, "You have the conversation now."))
                elif call in answers:
                    assert shape is not None
                    called = _answered(call, shape, value)
                else:
                    called = next(results)
                run.messages.append(called.message)
                if called.is_failed:
                    complaint = called.message.text
            if value:
                return value[0]
        failures = failures + 1 if complaint else 0
        if failures >= run.limits.failures:
            raise AgentError(f"{failures} replies in a row had a mistake; the last: {complaint}", run=run)
    raise AgentError(f"no answer after turns={run.limits.turns}; raise the limit, or remove a tool that the model calls forever", run=run)


def _answered(call: ToolCall, shape: Shape[T], value: list[T]) -> Called:
    try:
        value.append(shape.read(call.arguments))
    except WrongValueError as error:
        return Called(tool_result(call, f"Error: {error}"), is_failed=True)
    return Called(tool_result(call, "Accepted."))
