"""Structured output over HTTP: asked for in the words of OpenAI and of vLLM; enforced or refused, never free text."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator

from tests.serving.live_server import LiveServer
from tests.serving.tiny import NAME
from tripod.chat.http import HttpChatModel
from tripod.engine.engine import Engine
from tripod.errors import RequestError
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
UNSUPPORTED = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
ONE_TURN: Any = [{"role": "user", "content": "Say something."}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}

ASKED = [
    ({"response_format": FORMAT}, "json"),
    ({"structured_outputs": {"json": SCHEMA}}, "json"),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json"),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, r'\{"colour":"(red|green)","count":\d+\}'),
    ({"guided_json": SCHEMA}, "json"),
    ({"guided_json": json.dumps(SCHEMA)}, "json"),
    ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
    ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"structured_outputs": {"grammar": 'start: "(" /[0-9]/ ")"'}}, r"\([0-9]\)"),
    ({"guided_grammar": 'root ::= "(" [0-9] ")"'}, r"\([0-9]\)"),
]


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60.0) as client:
        yield client


def is_what_was_asked(text: str, expected: str) -> bool:
    return Draft202012Validator(SCHEMA).is_valid(json.loads(text)) if expected == "json" else re.fullmatch(expected, text) is not None


@pytest.mark.parametrize(("fields", "expected"), ASKED, ids=lambda value: str(value)[:40])
def test_every_way_to_ask_is_honoured_by_both_endpoints_streaming_or_not(http: httpx.Client, fields: Any, expected: str) -> None:
    body = {"model": NAME, "max_tokens": 120, "temperature": 1, "seed": 5, **fields}
    completion = http.post("/completions", json={**body, "prompt": "x"}).json()["choices"][0]
    chat = http.post("/chat/completions", json={**body, "messages": ONE_TURN}).json()["choices"][0]
    streamed = http.post("/completions", json={**body, "prompt": "x", "stream": True}).text
    chunks = [json.loads(line.removeprefix("data: ")) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == completion["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == completion["finish_reason"] == chat["finish_reason"] == "stop"
    assert is_what_was_asked(completion["text"], expected)
    assert is_what_was_asked(chat["message"]["content"], expected)


def test_the_openai_client_parses_into_a_type(server: LiveServer) -> None:
    import pydantic

    class Thing(pydantic.BaseModel):
        is_red: bool
        count: int = pydantic.Field(ge=0, le=99)

    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        reply = client.chat.completions.parse(model=NAME, messages=ONE_TURN, response_format=Thing, seed=1, max_tokens=200)
    assert isinstance(reply.choices[0].message.parsed, Thing)


def test_a_json_object_is_an_object_whatever_it_holds(http: httpx.Client) -> None:
    body = {"model": NAME, "prompt": "x", "max_tokens": 400, "n": 8, "seed": 1, "logit_bias": {str(ord("}")): 4}}
    choices = http.post("/completions", json={**body, "response_format": {"type": "json_object"}}).json()["choices"]
    whole = [choice["text"] for choice in choices if choice["finish_reason"] == "stop"]
    assert whole
    assert all(isinstance(json.loads(text), dict) for text in whole)
    assert all(choice["text"].startswith("{") for choice in choices)


def test_text_asks_for_nothing(http: httpx.Client) -> None:
    body = {"model": NAME, "prompt": "x", "temperature": 0}
    free = http.post("/completions", json=body).json()["choices"]
    assert http.post("/completions", json={**body, "response_format": {"type": "text"}}).json()["choices"] == free


REFUSED = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": UNSUPPORTED}}},
        "response_format",
        "'uniqueItems' at #",
    ),
    ({"structured_outputs": {"json": UNSUPPORTED}}, "structured_outputs", "'uniqueItems' at #"),
    ({"guided_json": UNSUPPORTED}, "guided_json", "'uniqueItems' at #"),
    ({"guided_json": {"type": "strin"}}, "guided_json", "$.type of the JSON schema is not valid"),
    ({"guided_json": "{"}, "guided_json", "is JSON; this is not"),
    ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
    ({"guided_regex": ""}, "guided_regex", "empty"),
    ({"guided_choice": []}, "guided_choice", "at least one text"),
    ({"guided_grammar": "start: other"}, "guided_grammar", "other"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, "structured_outputs", "is for json and json_object"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not a parameter that this server knows"),
    ({"guided_regex": "a", "response_format": FORMAT}, "guided_regex", "both say what the text must be"),
    (
        {"response_format": {"type": "json_object", "json_schema": FORMAT["json_schema"]}},
        "response_format",
        "belongs to type 'json_schema'",
    ),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "contradicts a grammar"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_enforced_is_refused_before_anything_is_generated(
    http: httpx.Client, engine: Engine, fields: Any, param: str, message: str, stream: bool
) -> None:
    steps = engine.stats().steps
    for path, prompt in (("/completions", {"prompt": ["x", "y"]}), ("/chat/completions", {"messages": ONE_TURN})):
        response = http.post(path, json={"model": NAME, "max_tokens": 8, "stream": stream, **prompt, **fields})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert message in error["message"]
    assert engine.stats().steps == steps


def test_our_client_asks_in_words_that_our_server_reads(server: LiveServer) -> None:
    async def main() -> list[str]:
        prompt = Prompt.of("Say something.")
        grammars = [Grammar.json_schema(SCHEMA), Grammar.regex("[ab]{3}"), Grammar.choice(["yes"]), Grammar.ebnf('start: "(" /x/ ")"')]
        grammars.append(Grammar.json_schema(SCHEMA, is_compact=True))
        samplings = [SamplingParams(grammar=grammar, max_tokens=120, seed=2) for grammar in grammars]
        async with HttpChatModel(server.url, model=NAME) as model:
            texts = [(await model.complete(prompt, sampling)).text for sampling in samplings]
            with pytest.raises(RequestError, match="uniqueItems"):
                await model.complete(prompt, SamplingParams(grammar=Grammar.json_schema(UNSUPPORTED), max_tokens=8))
        return texts

    texts = asyncio.run(main())
    assert is_what_was_asked(texts[0], "json")
    assert re.fullmatch("[ab]{3}", texts[1])
    assert texts[2:4] == ["yes", "(x)"]
    assert re.fullmatch(r'\{"colour":"(red|green)","count":\d+\}', texts[4])
