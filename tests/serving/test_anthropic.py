"""The official anthropic client, unmodified, against the server. What it should say comes from the OpenAI endpoint, asked beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from tests.serving.live_server import LiveServer, live_server
from tests.serving.test_tools import BIAS, WEATHER
from tests.serving.test_tools import engine as engine
from tests.serving.test_tools import server as server
from tests.serving.tiny import NAME
from tripod.chat.scripted import ScriptedModel
from tripod.messages import Message, ToolCall
from tripod.serving.app import build_app
from tripod.serving.auth import ApiKeys

TURNS: Any = [{"role": "user", "content": "How warm is it in Bern?"}]
TOOLS: Any = [
    {"name": "get_weather", "description": "The weather of a city.", "input_schema": WEATHER},
    {"name": "now", "input_schema": {"type": "object"}},
]
GREEDY = {"temperature": 0}  # which the client has no argument for
EXTRA: Any = {"seed": 1, "logit_bias": BIAS}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.root, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60.0) as client:
        yield client


def test_a_message_says_what_the_chat_endpoint_says(client: anthropic.Anthropic, server: LiveServer) -> None:
    message = client.messages.create(model=NAME, system="Be brief.", messages=TURNS, max_tokens=24, extra_body=GREEDY)
    turns: Any = [{"role": "system", "content": "Be brief."}, *TURNS]
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as other:
        expected = other.chat.completions.create(model=NAME, messages=turns, max_tokens=24, temperature=0)
    [block] = message.content
    assert block.type == "text"
    assert block.text == expected.choices[0].message.content
    assert message.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[expected.choices[0].finish_reason]
    assert expected.usage is not None
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected.usage.prompt_tokens
    assert usage.output_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}, {"type": "auto"}, {"type": "none"}])
def test_a_stream_adds_up_to_the_whole_message(client: anthropic.Anthropic, choice: Any) -> None:
    asked: Any = {"model": NAME, "messages": TURNS, "tools": TOOLS, "tool_choice": choice, "max_tokens": 200, "extra_body": EXTRA}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        added = stream.get_final_message()
    ignored = {"id", "usage", "tripod", "parsed_output"}
    expected, found = (json.loads(message.to_json()) for message in (whole, added))
    for message in (expected, found):
        for block in message["content"]:
            block.pop("id", None)
            block.pop("parsed_output", None)
    assert {k: v for k, v in found.items() if k not in ignored} == {k: v for k, v in expected.items() if k not in ignored}
    assert added.usage.output_tokens == whole.usage.output_tokens
    for block in whole.content:
        if block.type == "tool_use" and whole.stop_reason == "tool_use":
            Draft202012Validator(WEATHER if block.name == "get_weather" else {"maxProperties": 0}).validate(block.input)
    if choice["type"] == "tool":
        assert [block.type for block in whole.content] == ["tool_use"]
        assert whole.stop_reason == "tool_use"


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": NAME, "messages": TURNS, "max_tokens": 24, "extra_body": GREEDY}
    text = client.messages.create(**asked).content[0].text
    message = client.messages.create(**asked, stop_sequences=["never this", text[5:8]])
    assert message.content[0].text == text[: text.index(text[5:8])]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", text[5:8])


def test_tokens_are_counted_as_they_are_charged(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": NAME, "messages": TURNS, "tools": TOOLS}
    usage = client.messages.create(**asked, max_tokens=1).usage
    count = client.messages.count_tokens(**asked).input_tokens
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_every_kind_of_block_comes_through_and_goes_back() -> None:
    call = ToolCall("call1", "get_weather", '{"city": "Bern", "unit": "celsius"}')
    model = ScriptedModel([Message("assistant", "I look.", (call,), reasoning="The user asks."), "21 degrees."])
    app = build_app(None, apps={"scripted": model})
    with live_server(app) as server, anthropic.Anthropic(base_url=server.root, api_key="unused", max_retries=0) as client:
        with client.messages.stream(model="scripted", messages=TURNS, tools=TOOLS, max_tokens=100) as stream:
            first = stream.get_final_message()
        result = {"type": "tool_result", "tool_use_id": "call1", "content": [{"type": "text", "text": "21"}], "is_error": True}
        turns: Any = [*TURNS, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        second = client.messages.create(model="scripted", messages=turns, tools=TOOLS, max_tokens=100)
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    assert first.content[2].input == {"city": "Bern", "unit": "celsius"}
    assert first.stop_reason == "tool_use"
    assert second.content[0].text == "21 degrees."
    _, asked, answered = model.prompts[1].messages
    assert asked == Message("assistant", "I look.", (call,), reasoning="The user asks.")
    assert answered == Message("tool", "Error: 21", tool_call_id="call1")


def test_a_block_of_a_stream_is_closed_before_the_next_is_opened() -> None:
    calls = (ToolCall("a", "now", "{}"), ToolCall("b", "now", "{}"))
    app = build_app(None, apps={"scripted": ScriptedModel([Message("assistant", "I look.", calls, reasoning="Hm.")])})
    with live_server(app) as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        body = {"model": "scripted", "messages": TURNS, "max_tokens": 100, "stream": True}
        frames = http.post("/messages", json=body).text.split("\n\n")
    events = [json.loads(frame.partition("data: ")[2]) for frame in frames if frame]
    assert [frame.partition("\n")[0] for frame in frames if frame] == [f"event: {event['type']}" for event in events]
    changes = [(event["index"], event["type"].removeprefix("content_block_")) for event in events if "index" in event]
    assert [change for i, change in enumerate(changes) if change != changes[i - 1]] == [
        (index, what) for index in range(4) for what in ("start", "delta", "stop")
    ]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
RESULT = {"type": "tool_result", "tool_use_id": "x", "content": "1"}
REFUSED = [
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0] is of type 'image'"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "no message before it makes that call"),
    ({"messages": [*TURNS, {"role": "assistant", "content": "It"}]}, "cannot be continued"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]}, "cannot hold"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}}, "'f' fits none of the tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tool of type 'web_search_20250305'"),
    ({"tools": [{"name": "f", "input_schema": {"properties": {"a": {"uniqueItems": True}}}}]}, "the tool 'f': the JSON schema's keyword"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking"),
    ({"mcp_servers": [{}]}, "mcp_servers is not supported"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_in_the_words_of_this_api(http: httpx.Client, fields: Any, message: str, stream: bool) -> None:
    response = http.post("/messages", json={"model": NAME, "messages": TURNS, "max_tokens": 8, "stream": stream, **fields})
    assert response.status_code == 400, response.text
    body = response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert message in body["error"]["message"]


def test_the_client_raises_its_own_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist here"):
        client.messages.create(model="nobody", messages=TURNS, max_tokens=1)


def test_a_key_is_taken_from_the_header_of_this_api() -> None:
    app = build_app(None, apps={"scripted": ScriptedModel(["Yes."])}, api_keys=ApiKeys.of(["anna secret"]))
    asked: Any = {"model": "scripted", "messages": TURNS, "max_tokens": 9}
    with live_server(app) as server:
        with (
            anthropic.Anthropic(base_url=server.root, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError) as raised,
        ):
            client.messages.create(**asked)
        with anthropic.Anthropic(base_url=server.root, api_key="secret", max_retries=0) as client:
            assert client.messages.create(**asked).content[0].text == "Yes."
    assert raised.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
