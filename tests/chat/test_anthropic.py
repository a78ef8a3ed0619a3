"""The client of the Messages API: what it sends, and what it reads of what Anthropic's servers send (bodies from the API's reference)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.serving.live_server import live_server
from tripod.chat.anthropic import AnthropicChatModel
from tripod.chat.model import Model
from tripod.errors import ConfigError, EngineError, OverloadedError, RequestError, TripodError
from tripod.messages import File, Message, Reply, ToolCall, ToolSpec, Usage, assistant, system, tool_result, user
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams
from tripod.trace import fold

TOOL = ToolSpec("get_weather", "The weather.", {"type": "object", "properties": {"location": {"type": "string"}}})
CALL = ToolCall("toolu_01", "get_weather", '{"location": "San Francisco, CA"}')


@contextmanager
def answering(answer: Callable[[Request], Any]) -> Iterator[str]:
    async def endpoint(request: Request) -> Response:
        response = answer(request)
        return response if isinstance(response, Response) else await response

    async def ready(_: Request) -> Response:
        return Response()

    with live_server(Starlette(routes=[Route("/health", ready), Route("/v1/{path:path}", endpoint, methods=["GET", "POST"])])) as server:
        yield server.url


def ask(url: str, prompt: Any = "Hi", sampling: SamplingParams = SamplingParams(), *, is_streamed: bool, **options: Any) -> Reply:
    async def asked() -> Reply:
        async with AnthropicChatModel(url, **{"model": "m", **options}) as model:
            if is_streamed:
                return await fold(model.stream(Prompt.of(prompt), sampling))
            return await model.complete(Prompt.of(prompt), sampling)

    return asyncio.run(asked())


def sent(prompt: Any, sampling: SamplingParams = SamplingParams(), **options: Any) -> tuple[dict[str, Any], Any]:
    seen: list[Any] = []

    async def record(request: Request) -> Response:
        seen.append((await request.json(), request.headers))
        return JSONResponse({"content": [], "stop_reason": "end_turn", "usage": {}})

    with answering(record) as url:
        ask(url, prompt, sampling, is_streamed=False, **options)
    return seen[0]  # type: ignore[no-any-return]


WHOLE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "The user wants weather.", "signature": "EqQBCg=="},
        {"type": "text", "text": "Okay, let's check: "},
        {"type": "tool_use", "id": "toolu_01", "name": "get_weather", "input": {"location": "San Francisco, CA"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 400, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 12, "output_tokens": 89},
}
STREAM: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            **WHOLE,
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 400, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 12, "output_tokens": 2},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "The user wants "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "weather."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "EqQBCg=="}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Okay, let's"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": " check: "}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_01", "name": "get_weather", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ""}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"location": "San'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ' Francisco, CA"}'}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 89}},
    {"type": "message_stop"},
]


def sse(events: list[dict[str, Any]]) -> Response:
    return Response("".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events), media_type="text/event-stream")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thinking_text_and_tool_use_are_read_whole_and_streamed(is_streamed: bool) -> None:
    with answering(lambda _: sse(STREAM) if is_streamed else JSONResponse(WHOLE)) as url:
        reply = ask(url, is_streamed=is_streamed)
    assert reply.message == Message("assistant", "Okay, let's check: ", (CALL,), reasoning="The user wants weather.", signature="EqQBCg==")
    assert reply.usage == Usage(prompt_tokens=472, completion_tokens=89, cached_tokens=60)
    assert (reply.model, reply.finish_reason) == ("claude-x", "stop")


@pytest.mark.parametrize("events", [STREAM[:5], STREAM[:-2], []])
def test_a_stream_that_breaks_off_is_an_error_and_no_short_answer(events: list[dict[str, Any]]) -> None:
    with answering(lambda _: sse(events)) as url, pytest.raises(EngineError, match="before the answer was finished"):
        ask(url, is_streamed=True)


def test_an_error_inside_a_stream_rises() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with answering(lambda _: sse([*STREAM[:5], error])) as url, pytest.raises(OverloadedError, match="Overloaded"):
        ask(url, is_streamed=True)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", RequestError),
        (401, "authentication_error", ConfigError),
        (429, "rate_limit_error", OverloadedError),
        (500, "api_error", EngineError),
        (529, "overloaded_error", OverloadedError),
    ],
)
def test_each_status_is_its_reaction(status: int, kind: str, expected: type[TripodError]) -> None:
    body = {"type": "error", "error": {"type": kind, "message": "the reason"}}
    with (
        answering(lambda _: JSONResponse(body, status_code=status, headers={"retry-after": "7"})) as url,
        pytest.raises(expected, match="the reason") as caught,
    ):
        ask(url, is_streamed=False)
    assert not isinstance(caught.value, OverloadedError) or caught.value.retry_after_s == 7.0


def test_a_conversation_is_sent_in_turns_that_alternate() -> None:
    thinking = Message("assistant", "Let me see.", (CALL,), reasoning="hm", signature="EqQBCg==")
    second = ToolCall("toolu_02", "get_weather", "{}")
    picture = File(media_type="image/png", data=b"\x89PNG")
    messages = [
        system("Be brief."),
        user("Look:", picture),
        user("And?"),
        Message("assistant", thinking.text, (CALL, second), reasoning="hm", signature="EqQBCg=="),
        tool_result(CALL, "sunny"),
        tool_result(second, "rain"),
        user("So?"),
        Message("assistant", "Both.", reasoning="unsigned thoughts of another vendor"),
        user("Thanks."),
    ]
    body, headers = sent(Prompt.of(messages, tools=(TOOL,)), api_key="secret")
    text: Callable[[str], dict[str, str]] = lambda words: {"type": "text", "text": words}  # noqa: E731
    assert body == {
        "model": "m",
        "max_tokens": 4096,
        "system": "Be brief.",
        "messages": [
            {
                "role": "user",
                "content": [
                    text("Look:"),
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}},
                    text("And?"),
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "EqQBCg=="},
                    text("Let me see."),
                    {"type": "tool_use", "id": "toolu_01", "name": "get_weather", "input": {"location": "San Francisco, CA"}},
                    {"type": "tool_use", "id": "toolu_02", "name": "get_weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_01", "content": [text("sunny")]},
                    {"type": "tool_result", "tool_use_id": "toolu_02", "content": [text("rain")]},
                    text("So?"),
                ],
            },
            {"role": "assistant", "content": [text("Both.")]},
            {"role": "user", "content": [text("Thanks.")]},
        ],
        "tools": [{"name": "get_weather", "description": "The weather.", "input_schema": TOOL.parameters}],
        "tool_choice": {"type": "auto"},
    }
    assert headers["x-api-key"] == "secret"
    assert headers["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize(
    ("choice", "sent_choice"),
    [("none", {"type": "none"}), ("required", {"type": "any"}), ("get_weather", {"type": "tool", "name": "get_weather"})],
)
def test_the_choice_of_a_tool_is_sent(choice: str, sent_choice: dict[str, str]) -> None:
    assert sent(Prompt.of("Hi", tools=(TOOL,), tool_choice=choice))[0]["tool_choice"] == sent_choice


def test_sampling_and_thinking_are_sent() -> None:
    body, _ = sent("Hi", SamplingParams(temperature=0.0, top_p=0.9, top_k=5, max_tokens=10, stop=("END",)), thinking_tokens=1024)
    assert {key: body[key] for key in ("temperature", "top_p", "top_k", "stop_sequences")} == {
        "temperature": 0.0, "top_p": 0.9, "top_k": 5, "stop_sequences": ["END"],
    }  # fmt: skip
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert body["max_tokens"] == 1034  # thoughts count among them
    for held in (SamplingParams(grammar=Grammar.json_schema(TOOL.parameters)), SamplingParams()):
        prompt = Prompt.of("Hi") if held.grammar else Prompt.of("Hi", tools=(TOOL,), tool_choice="required")
        body, _ = sent(prompt, held, thinking_tokens=1024)  # the API: "thinking may not be enabled when tool_choice forces tool use"
        assert ("thinking" in body, body["max_tokens"]) == (False, 4096)


@pytest.mark.parametrize("sampling", [SamplingParams(seed=1), SamplingParams(logprobs=0), SamplingParams(grammar=Grammar.regex("a"))])
def test_what_the_wire_cannot_carry_is_refused_before_it_is_sent(sampling: SamplingParams) -> None:
    with pytest.raises(RequestError, match="Messages API"):
        ask("http://127.0.0.1:1/v1", sampling=sampling, is_streamed=False)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_is_held_to_a_schema_by_the_only_tool_that_may_be_called(is_streamed: bool) -> None:
    seen: list[dict[str, Any]] = []
    use = {"type": "tool_use", "id": "t", "name": "answer", "input": {"location": "San Francisco, CA"}}

    async def answer(request: Request) -> Response:
        seen.append(await request.json())
        return sse([STREAM[0], *STREAM[11:]]) if is_streamed else JSONResponse({**WHOLE, "content": [use]})

    with answering(answer) as url:
        reply = ask(url, sampling=SamplingParams(grammar=Grammar.json_schema(TOOL.parameters)), is_streamed=is_streamed)
    assert json.loads(reply.text) == {"location": "San Francisco, CA"}
    assert reply.tool_calls == ()
    assert seen[0]["tools"] == [{"name": "answer", "description": "Give the answer.", "input_schema": TOOL.parameters}]
    assert seen[0]["tool_choice"] == {"type": "tool", "name": "answer"}


def test_model_speaks_it_when_told_to() -> None:
    async def asked(url: str) -> Reply:
        async with Model(url, api="anthropic", model="claude-x") as model:
            return await model.complete([user("Hi"), assistant("Yes?"), user("Hi")])

    with answering(lambda _: JSONResponse(WHOLE)) as url:
        assert asyncio.run(asked(url)).message.reasoning == "The user wants weather."
    with pytest.raises(ConfigError, match="api='anthropic' does not apply"):
        Model("runs/tiny", api="anthropic")
