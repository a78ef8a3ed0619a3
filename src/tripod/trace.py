"""What happened, as values: the events of a running request, and the spans of a finished one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

from tripod.errors import EngineError
from tripod.messages import FinishReason, Message, Reply, Timings, TokenLogprob, ToolCall, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A piece of a tool call. Its first piece has id and name; the arguments of all pieces of one `index` add up."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A model said something more. `text` never ends inside a character; it may be empty while one is incomplete."""

    text: str = ""
    reasoning: str = ""
    signature: str = ""  # of the reasoning
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    step_id: int | None = None  # the engine's step that chose these tokens; `StepRecord.id`


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request ended; always the last event of a stream, exactly once."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings = Timings()
    stop: str | None = None  # the stop string that ended the text
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # one a prompt token; None for the first, which follows nothing
    model: str = ""
    mode: str = ""  # how it was computed, such as "native avx512, int8, batch-invariant"
    step_ids: tuple[int, ...] = ()  # the engine's steps that computed it, in order; `StepRecord.id`
    cache_miss: str | None = None  # why the prefix cache did not hold more of the prompt


Event: TypeAlias = Delta | Finished


_NO_CALL = ToolCall("", "", "")


async def fold(events: AsyncIterable[Event]) -> Reply:
    """A whole reply out of its events: streaming and not streaming are one code path."""
    return folded([event async for event in events])  # to its very end, so that the stream is over when this returns


def folded(events: Sequence[Event]) -> Reply:
    """The same, of events that have come already."""
    if not events or not isinstance(finished := events[-1], Finished):
        raise EngineError("the event stream ended without a Finished event; the model that made it is broken")
    deltas = [event for event in events if isinstance(event, Delta)]
    calls: dict[int, ToolCall] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        begun = calls.get(piece.index, _NO_CALL)
        calls[piece.index] = ToolCall(begun.id or piece.id, begun.name or piece.name, begun.arguments + piece.arguments)
    return Reply(
        message=Message(
            "assistant",
            "".join([delta.text for delta in deltas]),
            tuple(calls[index] for index in sorted(calls)),
            reasoning="".join([delta.reasoning for delta in deltas]),
            signature="".join([delta.signature for delta in deltas]),
        ),
        finish_reason=finished.finish_reason,
        usage=finished.usage,
        timings=finished.timings,
        model=finished.model,
        mode=finished.mode,
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        step_ids=tuple(delta.step_id for delta in deltas if delta.step_id is not None for _ in delta.token_ids),
    )


def unfolded(reply: Reply) -> tuple[Event, ...]:
    """Events that fold into the reply: everything that was said, in one piece."""
    calls = tuple(
        ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments) for index, call in enumerate(reply.tool_calls)
    )
    message = reply.message
    said = Delta(
        text=message.text,
        reasoning=message.reasoning,
        signature=message.signature,
        tool_calls=calls,
        token_ids=reply.token_ids,
        logprobs=reply.logprobs,
    )
    end = Finished(
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        timings=reply.timings,
        model=reply.model,
        mode=reply.mode,
        step_ids=reply.step_ids,
    )
    return said, end


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work, with what it was given and what it used. Times are seconds of the monotonic clock."""

    name: str
    start_s: float
    duration_s: float
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    children: tuple[Span, ...] = ()

    def walk(self) -> Iterator[Span]:
        """This span and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


open_children: ContextVar[list[Span] | None] = ContextVar("tripod_open_children", default=None)
"""The finished spans below the one that is open here; tasks begin with that of the task that started them. None: no span is open."""

recent: deque[Span] = deque(maxlen=64)
"""The last spans of this process that no other span holds: what has just happened, though nobody asked for a record of it."""


listeners: list[Callable[[Span], None]] = []
"""Called with every span that no other span holds, when it has ended. Empty: nothing leaves this process unless somebody says so."""


def attach(*spans: Span) -> None:
    """Put finished spans below the span that is open here; where none is, they are told to the listeners and are among the recent ones."""
    children = open_children.get()
    if children is not None:
        children.extend(spans)
        return
    recent.extend(spans)
    for listener in listeners:
        for one in spans:
            listener(one)


class timed:  # used as a function; a class, since a generator costs a microsecond more
    """Times a block, also one that yields, and hands its span to `put`; what the block adds to the dict that it is given is kept.

    An error is recorded and goes on rising; that nobody reads a generator to its end is none. `children` are the spans below it, to which
    the block may still add.
    """

    __slots__ = ("_attributes", "_children", "_name", "_put", "_start_s")

    def __init__(self, put: Callable[[Span], None], name: str, children: Sequence[Span] = (), /, **attributes: Any) -> None:
        self._put, self._name, self._children, self._attributes = put, name, children, attributes

    def __enter__(self) -> dict[str, Any]:
        self._start_s = time.monotonic()
        return self._attributes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None and not isinstance(error, GeneratorExit):
            self._attributes["error"] = f"{type(error).__name__}: {error}"
        self._put(Span(self._name, self._start_s, time.monotonic() - self._start_s, self._attributes, tuple(self._children)))


class span(timed):
    """Times a block as a span below the one that is open here, with all spans below it that end inside of the block.

    Not around a `yield`: what runs between two items of a generator is not part of it; there, use `timed`.
    """

    __slots__ = ("_token",)

    def __init__(self, name: str, put: Callable[[Span], None] = attach, /, **attributes: Any) -> None:
        super().__init__(put, name, [], **attributes)

    def __enter__(self) -> dict[str, Any]:
        self._token = open_children.set(self._children)  # type: ignore[arg-type]  # the list of above
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        open_children.reset(self._token)
        super().__exit__(kind, error, traceback)


@contextmanager
def recording(spans: list[Span] | None = None) -> Iterator[list[Span]]:
    """A list into which all top-level spans go that end inside of the block."""
    spans = [] if spans is None else spans
    token = open_children.set(spans)
    try:
        yield spans
    finally:
        open_children.reset(token)
