"""Sampling parameters are checked when they are built, and the error names the field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from tripod.errors import RequestError
from tripod.sampling import GREEDY, Grammar, SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("max_tokens", -1),
        ("logprobs", -1),
        ("stop", ("",)),
        ("logit_bias", {7: 101.0}),
        ("logit_bias", {7: math.nan}),
        ("seed", "a"),
        ("seed", 1.5),
        ("logprobs", 2.5),
        ("max_tokens", "5"),
        ("top_k", True),
        ("temperature", "0.5"),
        ("stop", "END"),
        ("stop", (3,)),
        ("stop_token_ids", ("a",)),
        ("logit_bias", {"a": 1.0}),
        ("grammar", "[a-z]+"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    assert field in str(caught.value)


def test_the_ends_of_every_range_are_allowed() -> None:
    params = SamplingParams(temperature=0.0, top_p=1.0, min_p=1.0, presence_penalty=-2.0, frequency_penalty=2.0, max_tokens=0, top_k=0)
    assert params.is_greedy
    assert SamplingParams(top_k=10**400, max_tokens=10**400).top_k == 10**400  # more than any float holds
    assert GREEDY.is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy


def test_equal_parameters_have_equal_hashes() -> None:
    assert hash(SamplingParams(logit_bias={1: 2.0}, seed=3)) == hash(SamplingParams(logit_bias={1: 2.0}, seed=3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Grammar("xml"), "kind 'xml' is unknown; give one of json_schema, json_object, regex, ebnf, choice"),  # type: ignore[arg-type]
        (lambda: Grammar("json_schema", "{"), "is JSON; this is not"),
        (lambda: Grammar("json_schema", "[1]"), "an object, or true or false"),
        (lambda: Grammar("json_schema", '{"minimum": NaN}'), "NaN is no JSON"),
        (lambda: Grammar("json_schema", '{"items":' * 50_000 + "{}" + "}" * 50_000), "characters; at most"),
        (lambda: Grammar("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000), "is JSON; this is not"),
        (lambda: Grammar.json_schema({"enum": [object()]}), "is not JSON"),
        (lambda: Grammar.json_schema({"minimum": math.inf}), "Infinity is no JSON"),
        (lambda: Grammar.regex(""), "the regex is empty"),
        (lambda: Grammar.regex("\ud800"), "half of a surrogate pair"),
        (lambda: Grammar.ebnf("a" * 70_000), "the ebnf has 70000 characters; at most 65536"),
        (lambda: Grammar.choice([]), "at least one text"),
        (lambda: Grammar.choice(["a", ""]), "none of them empty"),
        (lambda: Grammar("choice", '["a", 1]'), "at least one text"),
    ],
)
def test_a_grammar_is_checked_when_it_is_built(build: Callable[[], Grammar], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        build()
    assert caught.value.param == "grammar"


def test_a_grammar_says_where_the_text_ends_so_the_end_token_cannot_be_ignored() -> None:
    with pytest.raises(RequestError, match="contradicts a grammar") as caught:
        SamplingParams(grammar=Grammar.json_object(), ignore_eos=True)
    assert caught.value.param == "ignore_eos"
