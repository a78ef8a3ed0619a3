"""What is known of one run of an agent: while it goes on, and after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from tripod.agents.turns import Limits
from tripod.messages import Message, Reply, ToolCall, Usage
from tripod.trace import Delta, Span

if TYPE_CHECKING:
    from tripod.agents.agent import Agent

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Run(Generic[T]):
    """One run on its way from a question to a result."""

    active: Agent[T]  # who has the conversation; changes by a hand-off
    messages: list[Message]  # the history, the question, and what followed
    limits: Limits
    deps: Any = None
    usage: Usage = Usage()  # of all models that were asked, those inside tools included
    spans: list[Span] = field(default_factory=list)
    reply: Reply | None = None  # the last of the model
    marks: dict[str, str] = field(default_factory=dict)  # what is hidden from the model -> what it reads instead

    def spend(self, usage: Usage) -> None:
        self.usage += usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Generic[T]):
    """What a run came to; the last event of its stream."""

    value: T
    messages: tuple[Message, ...]  # the whole conversation: give it as `history` to go on
    usage: Usage
    reply: Reply  # the last of the model
    trace: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted:
    """A model asked for a tool."""

    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFinished:
    """A tool was called, or refused to be."""

    call: ToolCall
    message: Message  # what the model is told
    is_failed: bool


AgentEvent: TypeAlias = Delta | ToolStarted | ToolFinished | Result[T]
