"""Whatever is sent, the server never answers 5xx, and a refusal always has the shape of the API. A seeded share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.live_server import LiveServer
from tests.serving.tiny import NAME
from tripod.chat.wire.openai import ChatBody, CompletionBody, EmbeddingBody

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8
)


def near(*good: Any) -> st.SearchStrategy[Any]:
    """Mostly values that a client may mean, at and beyond their borders, and sometimes anything at all."""
    return st.sampled_from(good) | st.sampled_from(good) | anything


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": near(0, 0.5, 2, -1, 1e308, 5e-324),
    "top_p": near(0, 1e-9, 0.5, 1, 1.1),
    "top_k": near(-1, 0, 1, 40, 2**40, 2**63),
    "min_p": near(0, 0.1, 1.0),
    "n": near(1, 2, 0, 129),
    "stop": near("a", ["a", "b"], [], [""], None),
    "seed": near(0, 1, -1, 2**63 - 1, -(2**63), 2**64),
    "logit_bias": near({}, {"65": 100}, {"65": -100}, {"1000": 1}, {"-1": 1}, {"x": 1}),
    "presence_penalty": near(-2, 2, 3),
    "frequency_penalty": near(-2, 2, 3),
    "repetition_penalty": near(1, 0.1, 0, 1e308, 1e-308),
    "min_tokens": near(0, 1, 100),
    "ignore_eos": near(True, False),
    "stop_token_ids": near([], [1], [-1], [10**9]),
    "stream": near(True, False, None),
    "response_format": near(
        {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    ),
    "structured_outputs": near({}, {"json": SCHEMA}, {"regex": "a+"}, {"choice": ["a", "b"]}, {"grammar": "start: start"}, {"regex": "("}),
    "guided_json": near(SCHEMA, "{", "true", {"type": "array", "uniqueItems": True}),
    "guided_regex": near("[ab]*", "", "(?=a)"),
    "guided_choice": near(["a"], [], [""]),
    "guided_grammar": near('start: "a"', "", "start: ("),
    "stream_options": near({"include_usage": True}, {}, None),
    "max_tokens": near(1, 2, 0, 600, 2**62),
    "priority": near(0, 1, -1, 2**63),
    "timeout": near(60, 1e9, 0, -1, 1e300),
}
PROMPTS = near("Hi", "", ["a", "b"], [1, 2, 3], [[1], [2]], [10**9], [2**70], [True], "é\u0000\ud7ff", "x" * 600, "<|endoftext|>")
MESSAGES = near([{"role": "user", "content": "Hi"}], [{"role": "system", "content": ""}], [{"role": "tool"}], [], [{"role": "user"}])


TOOL_FUNCTION = {"name": "f", "parameters": SCHEMA}
FUNCTION = {"type": "function", "function": TOOL_FUNCTION}
TOOL = {"name": "f", "input_schema": SCHEMA}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
TURNS = near([{"role": "user", "content": "Hi"}], [{"role": "user", "content": [RESULT]}], [{"role": "assistant", "content": "Hi"}], [])
ITEMS = near("Hi", [{"role": "user", "content": "Hi"}], [{"type": "function_call_output", "call_id": "a", "output": "x"}], [], "")


def bodies(required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    some = st.fixed_dictionaries(required, optional=optional)
    return st.tuples(some, st.dictionaries(st.text(max_size=6), anything, max_size=1)).map(lambda pair: {**pair[1], **pair[0]})


completions = bodies(
    {"model": st.just(NAME), "prompt": PROMPTS},
    {**FIELDS, "logprobs": near(0, 1, 20, 21), "echo": near(True, False), "best_of": near(1, 2), "suffix": near("", None)},
)
chats = bodies(
    {"model": st.just(NAME), "messages": MESSAGES},
    {
        **FIELDS,
        "logprobs": near(True, False),
        "top_logprobs": near(0, 1, 20, 21),
        "parallel_tool_calls": near(True, False),
        "tools": near([], [FUNCTION], [FUNCTION, FUNCTION], [{"type": "x"}], [{"type": "function", "function": {"name": "g"}}]),
        "tool_choice": near("auto", "none", "required", {"type": "function", "function": {"name": "f"}}),
    },
)
messages = bodies(
    {"model": st.just(NAME), "messages": TURNS, "max_tokens": near(1, 2, 0, 600, 2**62)},
    {
        **{name: FIELDS[name] for name in ("temperature", "top_p", "top_k", "seed", "stream", "timeout", "priority", "logit_bias")},
        "stop_sequences": near(["a"], [], [""]),
        "system": near("x", [{"type": "text", "text": "x"}], []),
        "tools": near([], [TOOL], [TOOL, TOOL], [{"type": "bash_20250124", "name": "bash"}]),
        "tool_choice": near({"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "f"}, {"type": "tool"}, {"type": "none"}),
        "output_config": near({}, {"format": {"type": "json_schema", "schema": SCHEMA}}),
    },
)
responses = bodies(
    {"model": st.just(NAME), "input": ITEMS, "max_output_tokens": near(1, 2, 0, 600)},
    {
        **{name: FIELDS[name] for name in ("temperature", "top_p", "seed", "stream", "timeout", "priority", "logit_bias")},
        "instructions": near("x", ""),
        "tools": near([], [{**TOOL_FUNCTION, "type": "function"}], [{"type": "web_search"}]),
        "tool_choice": near("auto", "required", {"type": "function", "name": "f"}),
        "text": near({}, {"format": {"type": "json_object"}}, {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}),
        "store": near(True, False),
        "previous_response_id": near(None, "x"),
    },
)


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60.0) as client:
        yield client


def check(response: httpx.Response, end: str = "data: [DONE]\n\n", key: str = "choices") -> None:
    """`end` is that of a stream that was not broken off, `key` what a whole answer has."""
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) in ({"message", "type", "param", "code"}, {"message", "type"})
        assert error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert end in response.text[-max(len(end), 4000) :], response.text
    else:
        assert key in response.json()


PATHS = ["/completions", "/chat/completions", "/embeddings", "/messages", "/responses"]
seeded_share = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.campaign
@seeded_share
@given(body=completions)
def test_no_completion_body_breaks_the_server(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http.post("/completions", json=body))


@pytest.mark.campaign
@seeded_share
@given(body=chats)
def test_no_chat_body_breaks_the_server(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http.post("/chat/completions", json=body))


@pytest.mark.campaign
@seeded_share
@given(body=messages)
def test_no_message_breaks_the_server(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http.post("/messages", json=body), "event: message_stop", "content")


@pytest.mark.campaign
@seeded_share
@given(body=responses)
def test_no_response_body_breaks_the_server(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http.post("/responses", json=body), '"usage":{', "output")


@pytest.mark.campaign
@seeded_share
@given(
    path=st.sampled_from(["/completions", "/chat/completions", "/embeddings", "/messages", "/responses"]), content=st.binary(max_size=64)
)
def test_no_bytes_break_the_server(http: httpx.Client, path: str, content: bytes) -> None:
    check(http.post(path, content=content, headers={"content-type": "application/json"}))


def test_every_field_of_the_api_is_known_to_the_fuzzer_or_needs_no_fuzz() -> None:
    harmless = {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata", "store", "service_tier"}
    assert set(CompletionBody.model_fields) - harmless <= {"model", "prompt", "logprobs", "echo", "best_of", "suffix", *FIELDS}
    assert set(EmbeddingBody.model_fields) == {"model", "input", "encoding_format", "dimensions", "user", "timeout"}
    assert {"messages", "top_logprobs"} <= set(ChatBody.model_fields)
