"""Events fold into a reply; spans nest as the blocks that made them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from tripod.errors import EngineError
from tripod.messages import ToolCall, Usage
from tripod.trace import Delta, Event, Finished, Span, ToolCallDelta, fold, timed


async def _stream(*events: Event) -> AsyncIterator[Event]:
    for event in events:
        yield event


def test_a_reply_is_the_fold_over_its_events() -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    events = (Delta(text="he", token_ids=(5,)), Delta(text="llo", token_ids=(6, 7)), Finished(finish_reason="stop", usage=usage))
    reply = asyncio.run(fold(_stream(*events)))
    assert (reply.text, reply.token_ids, reply.finish_reason, reply.usage) == ("hello", (5, 6, 7), "stop", usage)


def test_pieces_of_tool_calls_and_of_reasoning_add_up_each_in_its_place() -> None:
    events = (
        Delta(reasoning="Add "),
        Delta(reasoning="both.", signature="c2ln"),
        Delta(tool_calls=(ToolCallDelta(index=0, id="a", name="add", arguments='{"x"'),)),
        Delta(tool_calls=(ToolCallDelta(index=1, id="b", name="add"), ToolCallDelta(index=0, arguments=": 1}"))),
        Delta(tool_calls=(ToolCallDelta(index=1, arguments="{}"),)),
        Finished(finish_reason="stop", usage=Usage()),
    )
    message = asyncio.run(fold(_stream(*events))).message
    assert message.tool_calls == (ToolCall("a", "add", '{"x": 1}'), ToolCall("b", "add", "{}"))
    assert (message.text, message.reasoning, message.signature) == ("", "Add both.", "c2ln")


def test_a_stream_without_an_end_is_an_error_and_not_a_short_reply() -> None:
    with pytest.raises(EngineError, match="without a Finished event"):
        asyncio.run(fold(_stream(Delta(text="he"))))


def test_spans_of_a_generator_nest_and_keep_what_was_added_inside() -> None:
    spans: list[Span] = []

    def ask() -> Iterator[str]:
        below: list[Span] = []
        with timed(spans.append, "ask", below, name="Ada"):
            with timed(below.append, "retrieve", k=8) as attributes:
                yield "found"
                attributes["found"] = 3
            yield "left here"

    for event in ask():
        if event == "left here":
            break
    gc.collect()  # closes the generator
    [span] = spans
    assert [one.name for one in span.walk()] == ["ask", "retrieve"]
    assert span.children[0].attributes == {"k": 8, "found": 3}
    assert span.attributes == {"name": "Ada"}  # to leave it is no error
    assert span.duration_s >= span.children[0].duration_s


def test_an_error_inside_a_span_is_recorded_and_rises() -> None:
    spans: list[Span] = []
    with pytest.raises(ValueError, match="given 3"), timed(spans.append, "convert"):
        raise ValueError("given 3")
    assert spans[0].attributes["error"] == "ValueError: given 3"


def test_usage_adds_up() -> None:
    total = Usage(prompt_tokens=3, completion_tokens=2) + Usage(prompt_tokens=10, completion_tokens=1, cached_tokens=8)
    assert (total.prompt_tokens, total.completion_tokens, total.cached_tokens, total.total_tokens) == (13, 3, 8, 16)
