"""Tool calls over /v1/chat/completions, by the official openai client. What is valid, jsonschema says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

import tripod
from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import NAME, open_tiny, write_tiny
from tripod.engine.engine import Engine, EngineConfig
from tripod.messages import Reply, ToolSpec, user
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.serving.app import build_app
from tripod.trace import fold

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["celsius", "kelvin"]}, "days": {"type": "integer"}},
    "required": ["city", "unit"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
QUESTION: Any = [{"role": "user", "content": "How warm is it in Bern?"}]
BIAS = {str(ord('"')): 6, str(ord("}")): 6, "256": 8, "258": 8}  # a random model would write strings without end
ASKED: dict[str, Any] = {"model": NAME, "messages": QUESTION, "tools": TOOLS, "max_tokens": 300, "logit_bias": BIAS}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_tiny(tmp_path_factory.mktemp("models") / "tiny", max_positions=8192)
    engine = open_tiny(folder, EngineConfig())
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[LiveServer]:
    with live_server(build_app(engine)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60.0) as client:
        yield client


def check_call(name: str, arguments: str) -> None:
    schema = WEATHER if name == "get_weather" else {"type": "object", "maxProperties": 0}
    Draft202012Validator(schema).validate(json.loads(arguments))


def test_required_calls_a_tool_with_valid_arguments(client: openai.OpenAI) -> None:
    for seed in range(4):
        completion = client.chat.completions.create(**ASKED, tool_choice="required", parallel_tool_calls=False, seed=seed)
        choice = completion.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls is not None
        [call] = choice.message.tool_calls
        assert call.type == "function"
        assert call.id
        check_call(call.function.name, call.function.arguments)


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    for seed in range(3):
        choice = client.chat.completions.create(**ASKED, tool_choice=NAMED, seed=seed).choices[0]
        assert [call.function.name for call in choice.message.tool_calls or ()] == ["get_weather"]
        check_call("get_weather", choice.message.tool_calls[0].function.arguments)


def test_none_and_an_answer_without_tools_are_the_same(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=30)
    none = client.chat.completions.create(model=NAME, messages=QUESTION, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=30)
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.choices[0].message.tool_calls is None


def test_auto_leaves_text_free(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(model=NAME, messages=QUESTION, tools=TOOLS, seed=1, max_tokens=20).choices[0]
    assert choice.message.content
    assert choice.message.tool_calls is None


def test_auto_holds_to_a_call_once_the_trigger_is_written(client: openai.OpenAI) -> None:
    # Nothing but the letters of the trigger can be written first, and then no text at all: what follows is the grammar's work.
    bias = {**BIAS, str(ord("<")): 100}
    steps = {**ASKED, "logit_bias": bias, "max_tokens": 400}
    found = []
    for seed in range(3):
        message = client.chat.completions.create(**steps, seed=seed, temperature=0.5).choices[0].message
        found += [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    for name, arguments in found:
        check_call(name, arguments)


@pytest.mark.parametrize("choice", ["required", "auto", NAMED])
def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI, choice: Any) -> None:
    asked = {**ASKED, "tool_choice": choice, "seed": 5, "max_tokens": 200}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text, calls, reasons = "", {}, []
    for chunk in chunks:
        for piece in chunk.choices:
            text += piece.delta.content or ""
            reasons += [piece.finish_reason] if piece.finish_reason else []
            for call in piece.delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
    expected = whole.choices[0]
    assert text == (expected.message.content or "")
    assert [calls[i] for i in sorted(calls)] == [(c.function.name, c.function.arguments) for c in expected.message.tool_calls or ()]
    assert reasons == [expected.finish_reason]
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"


def test_the_openai_clients_own_accumulator_takes_the_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ASKED, tool_choice=NAMED, seed=2) as stream:
        final = stream.get_final_completion()
    check_call("get_weather", final.choices[0].message.tool_calls[0].function.arguments)


def test_a_conversation_with_results_goes_on(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ASKED, tool_choice=NAMED, seed=3).choices[0].message
    assert reply.tool_calls is not None
    turns = [*QUESTION, reply.model_dump(), {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "21 degrees"}]
    answer = client.chat.completions.create(model=NAME, messages=turns, tools=TOOLS, seed=3, max_tokens=16).choices[0]
    assert answer.message.content


def test_a_call_that_max_tokens_cuts_says_so(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**{**ASKED, "max_tokens": 60}, tool_choice=NAMED, seed=1).choices[0]
    assert choice.finish_reason == "length"


def test_tools_and_a_response_format_go_together(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(4):
        message = client.chat.completions.create(**ASKED, response_format=response_format, seed=seed).choices[0].message
        if message.tool_calls:
            check_call(message.tool_calls[0].function.name, message.tool_calls[0].function.arguments)
        else:
            Draft202012Validator(schema).validate(json.loads(message.content or ""))


def tool(parameters: Any = None, name: str = "f", **fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": parameters, **fields}}]


def turn(**fields: Any) -> list[dict[str, Any]]:
    return [*QUESTION, {"role": "user", "content": "x", **fields}]


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REFUSED = [
    ({"tools": tool(), "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g' fits none of the tools"),
    ({"tool_choice": "required"}, "tool_choice", "fits none of the tools"),
    ({"tools": tool(), "tool_choice": "any"}, "tool_choice", "tool_choice"),
    ({"tools": tool(), "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "tool of type 'allowed_tools'"),
    ({"tools": [{"type": "web_search"}]}, "tools", "tools[0] is a tool of type 'web_search'"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "tools[0].function is missing"),
    ({"tools": tool(name="")}, "tools", "the name ''"),
    ({"tools": tool(name="auto")}, "tools", "no word of tool_choice"),
    ({"tools": tool() + tool()}, "tools", "as another before it"),
    ({"tools": tool({"type": "string"})}, "tools", "arguments are an object"),
    ({"tools": tool({"type": "objekt"})}, "tools", "arguments are an object"),
    (
        {"tools": tool({"properties": {"a": {"type": "strin"}}})},
        "tools",
        "the tool 'f': $.properties.a.type of the JSON schema is",
    ),
    (
        {"tools": tool({"properties": {"a": {"type": "array", "uniqueItems": True}}})},
        "tools",
        "the tool 'f': the JSON schema's keyword 'u",
    ),
    ({"tools": tool(), "guided_regex": "a+"}, "guided_regex", "a regex does not go together with tools"),
    ({"messages": turn(role="tool", tool_call_id="a")}, "messages[1].tool_call_id", "no message before it makes that call"),
    ({"messages": [*turn(role="assistant", tool_calls=[CALL]), *turn(role="tool", tool_call_id="b")]}, "messages[3].tool_call_id", "'b'"),
    ({"messages": turn(role="user", tool_calls=[CALL])}, "messages[1].tool_calls", "only an assistant calls tools"),
    (
        {"messages": turn(content=[{"type": "image_url", "image_url": {"url": "data:,x"}}])},
        "messages[1].content",
        "part of type 'image_url'",
    ),
    ({"functions": [{"name": "f"}]}, "functions", "is not supported"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_name(http: httpx.Client, fields: Any, param: str, message: str, stream: bool) -> None:
    response = http.post("/chat/completions", json={"model": NAME, "messages": QUESTION, "max_tokens": 8, "stream": stream, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_our_own_clients_call_tools_through_our_own_server(server: LiveServer, api: Any, is_streamed: bool) -> None:
    spec = ToolSpec("get_weather", "The weather of a city.", WEATHER)
    prompt = Prompt.of([user("How warm is it in Bern?")], tools=(spec,), tool_choice="get_weather")

    async def main() -> Reply:
        sampling = SamplingParams(max_tokens=300)
        async with tripod.Model(server.url, api=api, api_key="unused") as model:
            return await fold(model.stream(prompt, sampling)) if is_streamed else await model.complete(prompt, sampling)

    reply = tripod.run(main())
    assert [call.name for call in reply.tool_calls] == ["get_weather"]
    if reply.finish_reason == "stop":
        check_call("get_weather", reply.tool_calls[0].arguments)
