"""/v1/responses by the official openai client. What it should say comes from the chat endpoint, asked beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
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

QUESTION = "How warm is it in Bern?"
TOOLS: Any = [
    {"type": "function", "name": "get_weather", "description": "The weather of a city.", "parameters": WEATHER, "strict": False},
    {"type": "function", "name": "now", "parameters": None, "strict": None},
]
EXTRA: Any = {"seed": 1, "logit_bias": BIAS}
NAMED: Any = {"type": "function", "name": "get_weather"}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60.0) as client:
        yield client


def test_a_response_says_what_the_chat_endpoint_says(client: openai.OpenAI) -> None:
    response = client.responses.create(model=NAME, instructions="Be brief.", input=QUESTION, max_output_tokens=24, temperature=0)
    turns: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    expected = client.chat.completions.create(model=NAME, messages=turns, max_tokens=24, temperature=0)
    assert response.output_text == expected.choices[0].message.content
    assert response.status == {"length": "incomplete", "stop": "completed"}[expected.choices[0].finish_reason]
    assert response.usage is not None
    assert expected.usage is not None
    assert response.usage.input_tokens == expected.usage.prompt_tokens
    assert response.usage.output_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("choice", [NAMED, "required", "auto", "none"])
def test_the_events_of_a_stream_add_up_to_the_whole_response(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {"model": NAME, "input": QUESTION, "tools": TOOLS, "tool_choice": choice, "max_output_tokens": 200, "extra_body": EXTRA}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == f"response.{whole.status}"
    assert comparable(events[-1].response) == comparable(whole)
    deltas = "".join(event.delta for event in events if event.type.endswith(".delta"))
    assert deltas == "".join(item.arguments if item.type == "function_call" else item.content[0].text for item in whole.output)
    with client.responses.stream(**{**asked, "tools": [{**tool, "strict": None} for tool in TOOLS]}) as stream:
        final = stream.get_final_response() if whole.status == "completed" else None
    if final is not None:
        assert [item.type for item in final.output] == [item.type for item in whole.output]
    for item in whole.output:
        if item.type == "function_call" and whole.status == "completed":
            Draft202012Validator(WEATHER if item.name == "get_weather" else {"maxProperties": 0}).validate(json.loads(item.arguments))
    if choice == NAMED:
        assert [item.type for item in whole.output] == ["function_call"]


def test_an_item_of_a_stream_is_done_before_the_next_is_added() -> None:
    calls = (ToolCall("a", "now", "{}"), ToolCall("b", "now", "{}"))
    app = build_app(None, apps={"scripted": ScriptedModel([Message("assistant", "I look.", calls, reasoning="Hm.")])})
    with live_server(app) as server, openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        events = list(client.responses.create(model="scripted", input=QUESTION, stream=True))
    items = [event.type.rpartition(".")[2] for event in events if "output_item" in event.type]
    assert items == ["added", "done"] * 4


def comparable(response: Any) -> Any:
    body = json.loads(response.to_json())
    for name in ("id", "created_at", "tripod", "usage", "completed_at"):
        body.pop(name, None)
    for item in body["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return body


def test_a_text_format_is_parsed_into_a_type(client: openai.OpenAI) -> None:
    class Thing(pydantic.BaseModel):
        is_red: bool

    response = client.responses.parse(model=NAME, input=QUESTION, text_format=Thing, max_output_tokens=200, extra_body={"seed": 1})
    assert isinstance(response.output_parsed, Thing)


def test_items_of_a_response_go_back_as_the_turn_they_were() -> None:
    calls = (ToolCall("a", "get_weather", '{"city": "Bern", "unit": "celsius"}'), ToolCall("b", "now", "{}"))
    model = ScriptedModel([Message("assistant", "I look.", calls, reasoning="The user asks."), "21 degrees."])
    app = build_app(None, apps={"scripted": model})
    with live_server(app) as server, openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        asked: Any = {"model": "scripted", "tools": TOOLS}
        first = client.responses.create(**asked, input=QUESTION)
        results: Any = [{"type": "function_call_output", "call_id": call.id, "output": "21"} for call in calls]
        items: Any = [{"role": "user", "content": QUESTION}, *(item.model_dump(exclude_none=True) for item in first.output), *results]
        second = client.responses.create(**asked, input=items)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "function_call"]
    assert second.output_text == "21 degrees."
    assert model.prompts[1].messages == (
        Message("user", QUESTION),
        Message("assistant", "I look.", calls, reasoning="The user asks."),
        Message("tool", "21", tool_call_id="a"),
        Message("tool", "21", tool_call_id="b"),
    )


REFUSED = [
    ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
    ({"store": True}, "store is not supported"),
    ({"background": True}, "background is not supported"),
    ({"conversation": "x"}, "conversation is not supported"),
    ({"reasoning": {"effort": "low"}}, "reasoning is not supported"),
    ({"include": ["reasoning.encrypted_content"]}, "include is not supported"),
    ({"truncation": "auto"}, "truncation"),
    ({"tools": [{"type": "web_search"}]}, "tools[0] is a tool of type 'web_search'"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "'f' fits none of the tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "hosted"}}, "tool of type 'hosted'"),
    ({"tools": [{**TOOLS[0], "parameters": {"properties": {"a": {"uniqueItems": True}}}}]}, "the tool 'get_weather': the JSON schema's"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0] is of type 'item_reference'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "is of type 'input_image'"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]}, "no message before it makes that call"),
    ({"input": []}, "input"),
    ({"text": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}}, "'uniqueItems'"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "belongs to type 'json_schema'"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_name(http: httpx.Client, fields: Any, message: str, stream: bool) -> None:
    response = http.post("/responses", json={"model": NAME, "input": "x", "max_output_tokens": 8, "stream": stream, **fields})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
