"""Which sources a search may use: conditions on metadata, in Python or as JSON, with one meaning in every store.

    (F("year") >= 2020) & F("lang").is_in(["en", "de"]) & ~F("draft").exists()
    {"year": {">=": 2020}, "lang": ["en", "de"], "not": {"draft": {"exists": True}}}

What they mean:

- The field `source` is the source's name; any other is looked up in its metadata.
- A source without the field matches no comparison. `!=`, `not in` and `not` are plain negations, so it matches those.
- Values match by kind: true is not 1, and 1 is not "1"; 1 and 1.0 are one number.
- `<`, `<=`, `>` and `>=` order numbers with numbers, and times with times. A time is an ISO 8601 date or date and time in a text; one
  without an offset is in UTC, and a date is its midnight. A text that is no time cannot be ordered.
- `contains` looks for a text within a text, letter by letter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from operator import ge, gt, le, lt
from typing import Literal, TypeAlias, assert_never, cast

from tripod.documents import Metadata, Scalar
from tripod.errors import RequestError

Order: TypeAlias = Literal["<", "<=", ">", ">="]
Value: TypeAlias = Scalar | date  # a `datetime` is a date

ORDERS: Mapping[str, Callable[[float, float], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
MAX_DEPTH = 50  # of conditions within conditions
MAX_CONDITIONS = 500  # SQLite nests an expression 1000 deep at most, and a chain of "and" is as deep as it is long
_TOO_DEEP = f"where is nested more than {MAX_DEPTH} deep; write it flatter"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?", re.ASCII)


class _Combinable:
    __slots__ = ()

    def __and__(self, other: Filter) -> And:
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: Filter) -> Or:
        return Or((*_parts(self, Or), *_parts(other, Or)))

    def __invert__(self) -> Not:
        return Not(cast("Filter", self))


@dataclass(frozen=True, slots=True)
class OneOf(_Combinable):
    """The field equals one of the values; of none, if there are none."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Ordered(_Combinable):
    """The field is a number, or with `is_time` a text that is a time, on this side of the bound."""

    field: str
    order: Order
    bound: float  # an int, where it was one; of a time the microseconds since 1970
    is_time: bool = False


@dataclass(frozen=True, slots=True)
class Contains(_Combinable):
    """The field is a text that holds this one."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Exists(_Combinable):
    """The source has the field."""

    field: str


@dataclass(frozen=True, slots=True)
class And(_Combinable):
    """All parts hold; true of none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or(_Combinable):
    """Some part holds; false of none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not(_Combinable):
    """The part does not hold."""

    part: Filter


_NEVER = Or(())
Filter: TypeAlias = OneOf | Ordered | Contains | Exists | And | Or | Not
Where: TypeAlias = Filter | Mapping[str, object]  # a filter, or one as JSON: see `parse`


def _parts(of: object, kind: type[And | Or]) -> tuple[Filter, ...]:
    """What stands on one side of an operator; a chain of one operator is one condition with many parts."""
    return of.parts if isinstance(of, kind) else (cast("Filter", of),)


class F:
    """A field to compare: `F("year") >= 2020`. Raises RequestError where a value cannot be compared so."""

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment]  # what compares unusually must not be a key

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return _compare(self.name, "==", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return _compare(self.name, "!=", value)

    def __lt__(self, value: Value) -> Filter:
        return _compare(self.name, "<", value)

    def __le__(self, value: Value) -> Filter:
        return _compare(self.name, "<=", value)

    def __gt__(self, value: Value) -> Filter:
        return _compare(self.name, ">", value)

    def __ge__(self, value: Value) -> Filter:
        return _compare(self.name, ">=", value)

    def is_in(self, values: Sequence[Value]) -> Filter:
        return _compare(self.name, "in", values)

    def contains(self, text: str) -> Filter:
        return _compare(self.name, "contains", text)

    def exists(self) -> Filter:
        return _compare(self.name, "exists", True)


def parse(where: Where) -> Filter:
    """A filter from its JSON form; a filter stays as it is.

    Every entry of a mapping must hold. An entry is a field with a value, a list of values of which any will do, or a mapping of operators
    (`==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`, `contains`, `exists`) to values, which all must hold; or it is `and` or `or` with a
    list of filters, or `not` with one.

    Raises:
        RequestError: an operator that is not known, a value that metadata cannot hold or that cannot be ordered, an empty list, or
            more than a store could be asked.
    """
    wanted = _parse(where, 0)
    pending, num_conditions = [(wanted, 0)], 0
    while pending:
        part, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise RequestError(_TOO_DEEP, param="where")
        inner = part.parts if isinstance(part, And | Or) else (part.part,) if isinstance(part, Not) else ()
        pending += [(one, depth + 1) for one in inner]
        num_conditions += not inner
    if num_conditions > MAX_CONDITIONS:
        raise RequestError(
            f"where has {num_conditions} conditions, and at most {MAX_CONDITIONS} can be asked at once; ask for several values of a field "
            "with a list",
            param="where",
        )
    return wanted


def matches(wanted: Filter, source: str, metadata: Metadata) -> bool:
    """Whether a source passes: what every store's own condition must agree with."""
    match wanted:
        case And(parts):
            return all(matches(part, source, metadata) for part in parts)
        case Or(parts):
            return any(matches(part, source, metadata) for part in parts)
        case Not(part):
            return not matches(part, source, metadata)
        case OneOf() | Ordered() | Contains() | Exists():
            value = source if wanted.field == "source" else metadata.get(wanted.field)
            return value is not None and _holds(wanted, value)
        case _:
            assert_never(wanted)


def instant(text: object) -> int | None:
    """The microseconds from 1970 to a time in ISO 8601; None for any other value."""
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text)
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    except ValueError:
        return None


def _holds(wanted: OneOf | Ordered | Contains | Exists, value: Scalar) -> bool:
    match wanted:
        case OneOf(_, values):
            return any(isinstance(value, bool) == isinstance(other, bool) and value == other for other in values)
        case Ordered(_, order, bound, is_time):
            number = instant(value) if is_time else None if isinstance(value, str | bool) else value
            return number is not None and ORDERS[order](number, bound)
        case Contains(_, text):
            return isinstance(value, str) and text in value
        case Exists():
            return True
        case _:
            assert_never(wanted)


def _parse(where: object, depth: int) -> Filter:
    if not isinstance(where, Mapping):
        if isinstance(where, Filter):
            return where
        raise RequestError(f"where={where!r} is not a mapping of fields to values, such as {{'year': {{'>=': 2020}}}}", param="where")
    if depth > MAX_DEPTH:
        raise RequestError(_TOO_DEEP, param="where")
    parts: list[Filter] = []
    for name, wanted in where.items():
        if not isinstance(name, str):
            raise RequestError(f"where[{name!r}]: a field is named by a text", param="where")
        if name in ("and", "or") and isinstance(wanted, list | tuple) and all(isinstance(part, Mapping | Filter) for part in wanted):
            conditions = tuple(_parse(part, depth + 1) for part in wanted)
            if not conditions:
                raise RequestError(f"where[{name!r}] is empty; give it filters, or leave it out", param="where")
            parts.append(And(conditions) if name == "and" else Or(conditions))
        elif name == "not" and isinstance(wanted, Mapping | Filter):
            parts.append(Not(_parse(wanted, depth + 1)))
        elif isinstance(wanted, Mapping):
            if not wanted:
                raise RequestError(f"where[{name!r}] is empty; give an operator and a value, or leave the field out", param="where")
            parts += [_compare(name, operator, value) for operator, value in wanted.items()]
        else:
            parts.append(_compare(name, "in" if isinstance(wanted, list | tuple | set | frozenset) else "==", wanted))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _compare(field: str, operator: object, value: object) -> Filter:
    if not _is_text(field):
        # Half of a surrogate pair is no character, so no source has such a field.
        return Not(_NEVER) if operator in ("!=", "not in") or (operator == "exists" and not value) else _NEVER
    match operator:
        case "==" | "!=" | "in" | "not in":
            several = operator in ("in", "not in")
            if several and not isinstance(value, list | tuple | set | frozenset):
                raise RequestError(f"where[{field!r}]: {operator!r} needs a list of values, and got {value!r}", param="where")
            values = list(value) if several else [value]  # type: ignore[call-overload]
            if not values:
                raise RequestError(
                    f"where[{field!r}] is empty, so nothing could match; give a value, or leave the field out", param="where"
                )
            equal = _equal(field, values)
            return Not(equal) if operator in ("!=", "not in") else equal
        case "<" | "<=" | ">" | ">=":
            if isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
                return Ordered(field, operator, value)
            time = instant(_iso(value))
            if time is None:
                raise RequestError(
                    f"where[{field!r}]: {operator!r} orders numbers, and times as in '2024-05-01' or '2024-05-01T12:00:00+02:00', and got "
                    f"{value!r}",
                    param="where",
                )
            return Ordered(field, operator, time, is_time=True)
        case "contains":
            if not isinstance(value, str):
                raise RequestError(f"where[{field!r}]: 'contains' looks for a text, and got {value!r}", param="where")
            return Contains(field, value) if _is_text(value) else _NEVER
        case "exists":
            if not isinstance(value, bool):
                raise RequestError(f"where[{field!r}]: 'exists' needs true or false, and got {value!r}", param="where")
            return Exists(field) if value else Not(Exists(field))
        case _:
            raise RequestError(
                f"where[{field!r}]: {operator!r} is no operator; give one of ==, !=, <, <=, >, >=, in, not in, contains, exists",
                param="where",
            )


def _equal(field: str, values: Sequence[object]) -> Filter:
    scalars: list[Scalar] = []
    times: list[Filter] = []
    for value in values:
        if isinstance(value, date):
            time = instant(_iso(value))
            assert time is not None
            times.append(And((Ordered(field, ">=", time, is_time=True), Ordered(field, "<=", time, is_time=True))))
        elif isinstance(value, str) or (isinstance(value, int | float) and _is_finite(value)):
            scalars += [value] if not isinstance(value, str) or _is_text(value) else []
        else:
            raise RequestError(f"where[{field!r}]: {value!r} is not a text, a finite number, a bool or a date", param="where")
    equal = OneOf(field, tuple(scalars))
    return Or((equal, *times)) if times else equal


def _is_finite(value: float) -> bool:
    """Whether it is a number that a store can hold: an int may be larger than any float."""
    return abs(value) <= sys.float_info.max


def _iso(value: object) -> object:
    return value.isoformat() if isinstance(value, date) else value


def _is_text(text: str) -> bool:
    """Whether it is made of characters alone, without halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
