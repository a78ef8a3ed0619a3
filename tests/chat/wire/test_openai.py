"""One description of the wire: what the client writes, the server reads as the same values."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.chat.wire.openai import ChatBody, CompletionBody, DetokenizeBody, WireBody
from tripod.chat.wire.openai_replies import ChatLogprobs, completion_logprobs, token_name
from tripod.errors import RequestError
from tripod.messages import Message, TokenLogprob, ToolCall
from tripod.sampling import Grammar, SamplingParams

grammars = (
    st.sampled_from([{"type": "integer"}, {"properties": {"é": {"enum": [1, None]}}}]).map(Grammar.json_schema)
    | st.just(Grammar.json_schema(True))
    | st.just(Grammar.json_object())
    | st.text("ab*|", min_size=1).map(Grammar.regex)
    | st.text('start: "a"', min_size=1).map(Grammar.ebnf)
    | st.lists(st.text("ab", min_size=1), min_size=1, max_size=3).map(Grammar.choice)
)
samplings = st.builds(
    SamplingParams,
    logit_bias=st.dictionaries(st.integers(0, 2**31), st.floats(-100, 100), max_size=3),
    repetition_penalty=st.floats(0.01, 5),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 2**31),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.none() | st.integers(1, 2**31),
    min_tokens=st.integers(0, 2**31),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=4).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
) | st.builds(SamplingParams, grammar=st.none() | grammars)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
calls = st.builds(ToolCall, texts, texts, texts)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts),
    st.builds(Message, st.just("assistant"), texts, st.lists(calls, max_size=2).map(tuple)),
    st.builds(Message, st.just("tool"), texts, st.just(()), texts),
)


@given(sampling=samplings, conversation=st.lists(messages, min_size=1, max_size=3))
def test_the_server_reads_the_values_that_the_client_wrote(sampling: SamplingParams, conversation: list[Message]) -> None:
    sent = json.dumps(ChatBody.of(conversation, sampling, model="m", stream=True).to_json()).encode()
    body = ChatBody.parse(sent)
    assert body.to_sampling() == sampling
    assert [message.to_message("") for message in body.messages] == conversation
    assert body.model == "m"
    assert body.stream
    assert body.include_usage


def test_absent_and_null_mean_the_defaults_of_the_api() -> None:
    plain = ChatBody.parse(b'{"model": "m", "messages": [{"role": "user", "content": ""}]}').to_sampling()
    assert plain == SamplingParams()
    nulls = dict.fromkeys(set(CompletionBody.model_fields) - {"model", "prompt"})
    sampling = CompletionBody.parse(json.dumps({"model": "m", "prompt": "x", **nulls}).encode()).to_sampling()
    assert sampling == SamplingParams(max_tokens=16)


def test_a_developer_message_is_a_system_message() -> None:
    body = ChatBody.parse(b'{"model": "m", "messages": [{"role": "developer", "content": "Be brief."}]}')
    assert body.to_prompt().messages == (Message("system", "Be brief."),)


def test_a_name_says_who_of_several_people_speaks() -> None:
    turns = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Hi Ann.", "name": "bot"}]
    body = ChatBody.parse(json.dumps({"model": "m", "messages": turns}).encode())
    assert [message.text for message in body.to_prompt().messages] == ["Ann: Hi", "Hi Ann."]


@pytest.mark.parametrize(
    ("body", "param", "path"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages[0].weight", "messages[0].weight"),
        ({"messages": [5]}, "messages", "messages[0]"),
        ({"messages": [{"role": "user", "content": "x"}], "stop": ["a", 5]}, "stop", "stop[1]"),
        ({"messages": [{"role": "user", "content": "x"}], "stop": ["a"] * 65}, "stop", "stop takes at most 64"),
        ({"messages": [{"role": "user", "content": "x"}], "stop_token_ids": [1] * 65}, "stop_token_ids", "at most 64 items"),
    ],
)
def test_an_error_names_the_field_and_its_place(body: dict[str, object], param: str, path: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatBody.parse(json.dumps({"model": "m", **body}).encode())
    assert caught.value.param == param
    assert path in str(caught.value)


_MANY = 200_000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionBody, {"prompt": [1] * _MANY}),
        (CompletionBody, {"prompt": [[1] * _MANY]}),
        (CompletionBody, {"prompt": "x", "logit_bias": {str(i): "a" for i in range(_MANY)}}),
        (CompletionBody, {"prompt": "x", **{f"unknown{i}": 1 for i in range(_MANY)}}),
        (CompletionBody, {"prompt": "x", "guided_choice": [1] * _MANY}),
        (CompletionBody, {"prompt": "x", "stop_token_ids": [1] * _MANY}),
        (ChatBody, {"messages": [1] * _MANY}),
        (ChatBody, {"messages": [{"role": "user", "content": [{"type": "text"}] * _MANY}]}),
        (DetokenizeBody, {"tokens": ["a"] * _MANY}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_costs_about_what_its_bytes_do_however_much_is_wrong_with_it(kind: type[WireBody], body: dict[str, object]) -> None:
    content = json.dumps({"model": "m", **body}).encode()

    def seconds(read: Callable[[bytes], object]) -> float:
        began = time.perf_counter()
        with suppress(RequestError):
            read(content)
        return time.perf_counter() - began

    plainly = min(seconds(json.loads) for _ in range(3))
    assert min(seconds(kind.parse) for _ in range(3)) < 10 * plainly + 0.01  # twice as much; with an error for each entry, forty times


def test_two_pieces_of_a_character_keep_two_names() -> None:
    whole, lead, rest = TokenLogprob(0, "é", b"\xc3\xa9", -1.0), TokenLogprob(1, "�", b"\xc3", -1.0), TokenLogprob(2, "�", b"\xa9", -1.0)
    assert [token_name(entry) for entry in (whole, lead, rest)] == ["é", "bytes:\\xc3", "bytes:\\xa9"]
    top = completion_logprobs([TokenLogprob(1, "�", b"\xc3", -0.5, (lead, rest))], [0]).top_logprobs[0]
    assert top == {"bytes:\\xc3": -0.5, "bytes:\\xa9": -1.0}


def test_an_impossible_token_is_written_as_minus_9999() -> None:
    entry = TokenLogprob(0, "a", b"a", -math.inf, (TokenLogprob(1, "b", b"b", -math.inf),))
    assert completion_logprobs([entry], [0]).token_logprobs == [-9999.0]
    content = ChatLogprobs.of([entry]).content
    assert content is not None
    assert (content[0].logprob, content[0].top_logprobs[0].logprob) == (-9999.0, -9999.0)
    json.dumps(ChatLogprobs.of([entry]).to_json(), allow_nan=False)
