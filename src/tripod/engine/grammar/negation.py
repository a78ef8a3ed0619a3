"""The negation of a JSON schema, in keywords that say what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tripod.engine.grammar.refusal import UnsupportedSchemaError, unsupported

Schema: TypeAlias = Mapping[str, Any] | bool

_TYPES = ("null", "boolean", "number", "string", "array", "object")
_ANNOTATIONS = frozenset(
    [
        "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default", "definitions", "deprecated",
        "description", "examples", "id", "readOnly", "title", "writeOnly",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Negation:
    """What is valid by `of(schema, place)` is not valid by `schema`, and the other way round.

    A value breaks a schema by breaking one of its keywords, so the negation is a choice among the negations of these.
    """

    asked_by: str  # the keyword that needs it, for errors
    rewrite: Callable[[Any, str], Schema]  # the positive form of a schema at a place

    def of(self, schema: Any, place: str) -> Schema:
        """
        Raises:
            UnsupportedSchemaError: a keyword's negation has no positive form.
        """
        if not isinstance(schema, Mapping):
            return not schema
        alternatives: list[Schema] = []
        for key, value in schema.items():
            if key in _ANNOTATIONS:
                continue
            if key not in _RULES:
                raise self.refusal(place, f"the negation of {key!r} has no form that can be enforced")
            alternatives.append(_RULES[key](self, value, schema, f"{place}/{key}"))
        return _any_of(alternatives)

    def refusal(self, place: str, reason: str) -> UnsupportedSchemaError:
        return unsupported(self.asked_by, place, reason)


_Rule: TypeAlias = Callable[[Negation, Any, Mapping[str, Any], str], Schema]  # negation, value of the keyword, schema around it, place


def _any_of(alternatives: Sequence[Schema]) -> Schema:
    if any(alternative is True for alternative in alternatives):
        return True
    possible = [alternative for alternative in alternatives if alternative is not False]
    return {"anyOf": possible} if possible else False


def _not(negation: Negation, value: Any, _: Mapping[str, Any], place: str) -> Schema:
    return negation.rewrite(value, place)


def _type(negation: Negation, value: Any, _: Mapping[str, Any], place: str) -> Schema:
    types = {value} if isinstance(value, str) else set(value)
    if "integer" in types and "number" not in types:
        raise negation.refusal(place, "the numbers that are no integers have no form that can be enforced")
    others = [name for name in _TYPES if name not in types]
    return {"type": others} if others else False


def _enum(negation: Negation, values: Any, _: Mapping[str, Any], place: str) -> Schema:
    """All but some strings, truth values and null."""
    if not all(isinstance(value, str | bool) or value is None for value in values):
        raise negation.refusal(place, "the negation of a list that holds numbers, arrays or objects has no form that can be enforced")
    strings = [value for value in values if isinstance(value, str)]
    literals = [value for value in (None, True, False) if not any(value is listed for listed in values)]
    return _any_of(
        [
            {"type": ["number", "array", "object"]},
            {"type": "string", "pattern": all_but(strings)} if strings else {"type": "string"},
            {"enum": literals} if literals else False,
        ]
    )


def _const(negation: Negation, value: Any, schema: Mapping[str, Any], place: str) -> Schema:
    return _enum(negation, [value], schema, place)


def all_but(strings: Sequence[str]) -> str:
    """A pattern, without look-around, that every string matches but these.

    Another string is a proper prefix of one of them, or leaves them all after the prefix that it shares with them.
    """
    prefixes = sorted({string[:end] for string in strings for end in range(len(string) + 1)})
    parts = [escaped(prefix) for prefix in prefixes if prefix not in strings]
    for prefix in prefixes:
        following = sorted({string[len(prefix)] for string in strings if string.startswith(prefix) and len(string) > len(prefix)})
        leaving = f"[^{''.join(map(escaped, following))}]" if following else r"[\s\S]"
        parts.append(escaped(prefix) + leaving + r"[\s\S]*")
    return f"^(?:{'|'.join(parts)})$"


def escaped(text: str) -> str:
    """A pattern of this text alone, in the syntax of Rust's regex crate, in a class or outside."""
    return "".join(char if char.isalnum() else f"\\u{{{ord(char):x}}}" for char in text)


def _required(_: Negation, names: Any, __: Mapping[str, Any], ___: str) -> Schema:
    return _any_of([{"type": "object", "properties": {name: False}} for name in names])


def _properties(negation: Negation, value: Any, _: Mapping[str, Any], place: str) -> Schema:
    broken = {name: negation.of(item, f"{place}/{name}") for name, item in value.items()}
    return _any_of(
        [item is not False and {"type": "object", "required": [name], "properties": {name: item}} for name, item in broken.items()]
    )


def _all_of(negation: Negation, value: Any, _: Mapping[str, Any], place: str) -> Schema:
    return _any_of([negation.of(item, f"{place}/{i}") for i, item in enumerate(value)])


def _each_of(negation: Negation, value: Any, _: Mapping[str, Any], place: str) -> Schema:
    return {"allOf": [negation.of(item, f"{place}/{i}") for i, item in enumerate(value)]}


def _size(kind: str, other: str, step: int) -> _Rule:
    """`minLength: 3` is broken by a string of `maxLength: 2`, a step of -1; `maxLength: 3` by one of `minLength: 4`, a step of +1."""

    def rule(_: Negation, value: Any, __: Mapping[str, Any], ___: str) -> Schema:
        size = int(value) + step
        return {"type": kind, other: size} if size >= 0 else False

    return rule


def _bound(other: str) -> _Rule:
    def rule(negation: Negation, value: Any, schema: Mapping[str, Any], place: str) -> Schema:
        if any(isinstance(schema.get(key), bool) for key in ("exclusiveMinimum", "exclusiveMaximum")):
            raise negation.refusal(place, "the negation of an exclusive bound as draft 4 writes it is not known here")
        return {"type": "number", other: value}

    return rule


_RULES: Mapping[str, _Rule] = {
    "not": _not,
    "type": _type,
    "enum": _enum,
    "const": _const,
    "required": _required,
    "properties": _properties,
    "allOf": _all_of,
    "anyOf": _each_of,
    "minLength": _size("string", "maxLength", -1),
    "maxLength": _size("string", "minLength", 1),
    "minItems": _size("array", "maxItems", -1),
    "maxItems": _size("array", "minItems", 1),
    "minimum": _bound("exclusiveMaximum"),
    "maximum": _bound("exclusiveMinimum"),
    "exclusiveMinimum": _bound("maximum"),
    "exclusiveMaximum": _bound("minimum"),
}
