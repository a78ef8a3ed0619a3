"""A flow goes through YAML and back, and is drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import tripod
from tests.flows.test_flow import Text, Word, count, deep, load, quick, route, shout, split
from tripod.errors import ConfigError
from tripod.flows.effects import effect
from tripod.flows.flow import Flow
from tripod.flows.step import branch, each, loop, step


@effect(repeatable=True)
def weigh(word: Word) -> int:
    return len(word.letters)


def total(weights: list[int]) -> int:
    return sum(weights)


def halve(number: int) -> int:
    return number // 2


def is_small(number: int) -> bool:
    return number < 3


def is_short(text: Text) -> bool:
    return len(text.body) < 5


def keep(text: Text) -> list[Word]:
    return [Word(text.body)]


ALLOWED = [load, split, count, weigh, total, halve, is_small, is_short, keep, route, quick, deep, shout]

FLOWS = [
    (Flow(load, split, count, name="plain"), {"path": "a"}),
    (Flow(route, quick, deep, shout), {"question": "Why is there something?"}),
    (
        Flow(
            load,
            branch(is_short, then=keep, otherwise=split, name="words"),
            each(weigh, limit=3, word="words"),
            step(total, weights="weigh"),
            loop(halve, until=is_small, at_most=9, number="total"),
            name="all kinds",
        ),
        {"path": "some path"},
    ),
    (Flow(Flow(load, split, name="words"), step(count, words="words"), max_concurrency=2), {"path": "x y"}),
]


@pytest.mark.parametrize(("flow", "inputs"), FLOWS)
def test_a_flow_comes_back_from_yaml_as_it_was(flow: Flow, inputs: dict[str, Any]) -> None:
    text = flow.to_yaml()
    again = Flow.from_yaml(text, allow=ALLOWED)
    assert again.to_yaml() == text
    assert (again.fingerprint, again.name, again.max_concurrency) == (flow.fingerprint, flow.name, flow.max_concurrency)
    assert tripod.run(again(**inputs)) == tripod.run(flow(**inputs))


def test_it_reads_as_one_would_write_it() -> None:
    assert Flow(split, step(count, words=split), load, name="plain").to_yaml() == (
        "name: plain\nsteps:\n  load:\n    call: load\n  split:\n    call: split\n"
        "  count:\n    call: count\n    takes:\n      words: split\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("steps: {a: {call: os.system}}", "names 'os.system', which is not allowed; allowed are: load"),
        ("steps: {a: {call: !!python/object/apply:os.system [echo]}}", "is no YAML that may be read: could not determine a constructor"),
        ("steps: {a: {call: load, shell: true}}", "step 'a' in YAML says 'shell', which means nothing"),
        ("steps: {a: {loop: load, until: eval, at_most: 2}}", "names 'eval', which is not allowed"),
        ("steps: {a: {limit: 3}}", "step 'a' says none of call, each"),
        ("steps: {a: {call: load, limit: 3}}", "step 'a' in YAML says 'limit', which means nothing; it may say call, repeatable, takes"),
        ("steps: {a: {loop: load, over: path}}", "step 'a': loop\\(\\) missing 2 required keyword-only arguments: 'until' and 'at_most'"),
        ("- load", "a flow in YAML is"),
    ],
)
def test_what_is_not_allowed_is_named_and_never_looked_up(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Flow.from_yaml(text, allow=[load])


_WORDS = st.sampled_from(
    [*"ab", "call", "each", "loop", "branch", "flow", "over", "limit", "until", "at_most", "then", "otherwise", "takes"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.sampled_from(["load", "split", "quick", "path", "text", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.dictionaries(st.sampled_from("ab"), st.dictionaries(_WORDS, _VALUES, min_size=1, max_size=4), max_size=2) | _VALUES,
    beside=st.dictionaries(st.sampled_from(["name", "returns", "max_concurrency"]), _VALUES),
)
def test_whatever_a_yaml_says_it_is_a_flow_or_one_clear_error(steps: Any, beside: dict[str, Any]) -> None:
    with suppress(ConfigError):
        assert Flow.from_yaml(yaml.safe_dump({"steps": steps, **beside}), allow=[load, split, quick]).max_concurrency >= 1


def test_a_function_without_a_name_cannot_go_to_yaml() -> None:
    with pytest.raises(ConfigError, match="'<lambda>' has no name by which YAML could call it"):
        Flow(step(lambda path: path, name="f")).to_yaml()


def test_mermaid_draws_inputs_steps_and_types() -> None:
    assert Flow(load, split, each(weigh, limit=3), name="f").mermaid() == (
        "flowchart TD\n"
        '    in_path(("path"))\n'
        '    step_load["load"]\n'
        '    step_split["split"]\n'
        '    step_weigh[["each weigh, 3 at once"]]\n'
        '    in_path -->|"str"| step_load\n'
        '    step_load -->|"Text"| step_split\n'
        '    step_split -->|"Sequence[Word]"| step_weigh\n'
    )


def test_names_that_look_alike_are_two_nodes() -> None:
    drawn = Flow(step(load, name="a b"), step(split, name="a_b", text="a b")).mermaid()
    assert drawn.count('["a b"]') == drawn.count('["a_b"]') == 1
    ids = {line.split("[")[0].strip() for line in drawn.splitlines() if '["a' in line}
    assert len(ids) == 2
    assert all(re.fullmatch(r"\w+", one, re.ASCII) for one in ids)


def test_the_svg_holds_every_step_below_what_it_takes_from() -> None:
    flow, _ = FLOWS[2]
    drawn = ElementTree.fromstring(flow.svg())
    name = "{http://www.w3.org/2000/svg}"
    labels = [one.text for one in drawn.iter(f"{name}text")]
    assert {"path", "load", "words: keep or split", "each weigh, 3 at once", "total", "loop halve, at most 9"} <= set(labels)
    heights = [int(one.attrib["y"]) for one in drawn.iter(f"{name}rect")]
    assert heights == sorted(heights)
    assert len(set(heights)) == 6  # one input, and a chain of five
