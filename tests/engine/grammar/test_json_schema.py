"""A rewritten schema allows the same values, by a validator that knows nothing of the rules; the rest is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from tripod.engine.grammar.json_schema import check_schema, rewrite
from tripod.engine.grammar.negation import all_but
from tripod.engine.grammar.refusal import UnsupportedSchemaError
from tripod.errors import RequestError

NAMES = st.sampled_from(["a", "b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5, "", "a", "ab", "b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]


def schemas() -> st.SearchStrategy[Any]:
    return st.recursive(
        st.booleans()
        | st.fixed_dictionaries({"type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True)})
        | st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"const": VALUES})
        | st.fixed_dictionaries({"required": st.lists(NAMES, max_size=2, unique=True)})
        | st.fixed_dictionaries({"minimum": st.integers(-1, 2)})
        | st.fixed_dictionaries({"exclusiveMaximum": st.integers(-1, 2)})
        | st.fixed_dictionaries({"minLength": st.integers(0, 2), "maxLength": st.integers(0, 2)})
        | st.fixed_dictionaries({"minItems": st.integers(0, 2)})
        | st.fixed_dictionaries({"dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2)}),
        lambda inner: (
            st.fixed_dictionaries({"not": inner})
            | st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)})
            | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2), "type": st.sampled_from(TYPES)})
            | st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=3)})
            | st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner})
            | st.fixed_dictionaries({"properties": st.dictionaries(NAMES, inner, max_size=2)}, optional={"required": st.just(["a"])})
            | st.fixed_dictionaries({"dependentSchemas": st.dictionaries(NAMES, inner, max_size=1)})
        ),
        max_leaves=6,
    )


@settings(max_examples=400, deadline=None)
@given(schemas(), st.lists(VALUES, min_size=1, max_size=8), st.booleans())
def test_a_rewritten_schema_allows_the_same_values(schema: Any, values: list[Any], expand_one_of: bool) -> None:
    try:
        rewritten = rewrite(schema, expand_one_of=expand_one_of)
    except UnsupportedSchemaError:
        return
    for value in values:
        assert Draft202012Validator(rewritten).is_valid(value) == Draft202012Validator(schema).is_valid(value), (rewritten, value)


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"not": {"type": "string"}}, [None, 1, [], {}], ["", "x"]),
        ({"not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}, 3]),
        ({"type": "string", "not": {"enum": ["ab", "abc"]}}, ["", "a", "b", "abcd", "ac"], ["ab", "abc"]),
        ({"enum": [1, "a", [2]], "not": {"type": "array"}}, [1, "a"], [[2], 2]),
        ({"allOf": [{"enum": [1, 5]}, {"not": {"maximum": 3}}]}, [5], [1, 6]),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1, "c": 2}], [{}, {"a": 1, "b": 1}]),
        ({"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}, 7], [{"a": 1}]),
        ({"if": {"properties": {"a": {"const": "x"}}, "required": ["a"]}, "then": {"required": ["b"]}}, [{"a": "y"}, {}], [{"a": "x"}]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_rule_keeps_what_is_valid(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    validator = Draft202012Validator(rewrite(schema, expand_one_of=True))
    assert not {"not", "if", "oneOf", "dependentRequired"} & set(re.findall(r"'(\w+)':", str(validator.schema)))
    assert [validator.is_valid(value) for value in valid] == [True] * len(valid)
    assert [validator.is_valid(value) for value in invalid] == [False] * len(invalid)


def test_the_dependencies_of_draft_7_hold_names_or_schemas() -> None:
    schema = {"$schema": Draft7Validator.META_SCHEMA["$id"], "dependencies": {"a": ["b"], "c": {"properties": {"b": {"type": "null"}}}}}
    validator = Draft7Validator(rewrite(schema))
    values = [{}, {"a": 1}, {"a": 1, "b": 2}, {"c": 1}, {"c": 1, "b": 2}, {"c": 1, "b": None}, "text"]
    assert [validator.is_valid(value) for value in values] == [Draft7Validator(schema).is_valid(value) for value in values]


@given(st.lists(st.text("ab-^]", max_size=3), min_size=1, max_size=4), st.text("ab-^]c\n", max_size=4))
def test_all_but_some_strings_is_a_pattern_of_every_other(strings: list[str], text: str) -> None:
    pattern = re.sub(r"\\u\{(\w+)\}", lambda found: re.escape(chr(int(found[1], 16))), all_but(strings)).removesuffix("$") + r"\Z"
    assert bool(re.match(pattern, text)) == (text not in strings)


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems", "#/properties/a"),
        ({"items": {"contains": {"type": "null"}}}, "contains", "#/items"),
        ({"propertyNames": {"maxLength": 3}}, "propertyNames", "#"),
        ({"not": {"pattern": "a"}}, "not", "#/not"),
        ({"not": {"type": "integer"}}, "not", "#/not/type"),
        ({"not": {"enum": [1]}}, "not", "#/not/enum"),
        ({"if": {"multipleOf": 2}, "then": False}, "if", "#/if"),
        ({"minProperties": 3, "required": ["a"]}, "minProperties", "#"),
        ({"enum": [1], "not": {"type": "number"}}, "enum", "#"),
        ({"items": {"enum": [{"a": [1e308]}]}}, "enum", "#/items"),
        ({"allOf": [{"const": 1e308}, {"not": {"type": "string"}}]}, "enum", "#"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_has_no_positive_form_is_refused_by_keyword_and_place(schema: Any, keyword: str, place: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=re.escape(f"{keyword!r} at {place} ")) as caught:
        rewrite(schema)
    assert (caught.value.keyword, caught.value.param) == (keyword, "grammar")


def test_what_only_annotates_is_left_alone() -> None:
    schema = {"title": "t", "x-ours": {"not": 1}, "uniqueItems": False, "minContains": 1, "properties": {"not": {"type": "null"}}}
    assert rewrite(schema) == schema


def test_what_is_no_schema_is_refused_with_its_place() -> None:
    with pytest.raises(RequestError, match=r"\$\.properties\.a\.type of the JSON schema is not valid"):
        check_schema({"properties": {"a": {"type": "strin"}}})
