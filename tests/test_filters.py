"""Filters as values and as JSON; what they mean in a store is the contract of all stores (`tripod.testing.store`)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from functools import reduce
from operator import and_, or_

import pytest

from tripod.errors import RequestError
from tripod.filters import MAX_CONDITIONS, MAX_DEPTH, And, F, Not, OneOf, Or, Ordered, instant, matches, parse


@pytest.mark.parametrize(
    ("in_json", "in_python"),
    [
        ({"year": 2020}, F("year") == 2020),
        ({"year": {"!=": 2020}}, F("year") != 2020),
        ({"year": {"not in": [1, 2]}}, ~F("year").is_in([1, 2])),
        ({"year": {">=": 2020, "<": 2024}}, (F("year") >= 2020) & (F("year") < 2024)),
        ({"or": [{"a": 1}, {"not": {"b": {"exists": True}}}]}, (F("a") == 1) | ~F("b").exists()),
        ({"day": {">": "2024-05-01"}}, F("day") > date(2024, 5, 1)),
        ({"day": {"<=": "2024-05-01T02:00:00+02:00"}}, F("day") <= datetime(2024, 5, 1, tzinfo=UTC)),
        ({"title": {"contains": "x"}, "or": [{"a": 1}, {"b": 2}]}, F("title").contains("x") & ((F("a") == 1) | (F("b") == 2))),
    ],
)
def test_json_and_python_say_the_same(in_json: dict[str, object], in_python: object) -> None:
    assert parse(in_json) == in_python


def test_fields_may_be_called_like_operators() -> None:
    assert parse({"not": "x", "and": ["y", "z"], "or": 1}) == And((OneOf("not", ("x",)), OneOf("and", ("y", "z")), OneOf("or", (1,))))


def test_json_and_python_may_be_mixed() -> None:
    assert parse({"or": [F("a") == 1, {"b": 2}], "not": F("c").exists()}) == And(
        (Or((OneOf("a", (1,)), OneOf("b", (2,)))), Not(F("c").exists()))
    )


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-05-01", datetime(2024, 5, 1, tzinfo=UTC)),
        ("2024-05-01T12:30", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("2024-05-01 12:30:00.25Z", datetime(2024, 5, 1, 12, 30, 0, 250_000, tzinfo=UTC)),
        ("2024-05-01T12:30:00+05:30", datetime(2024, 5, 1, 12, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
        ("1969-12-31T23:59:59", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_iso_8601_and_without_an_offset_as_utc(text: str, time: datetime) -> None:
    assert instant(text) == round(time.timestamp() * 1_000_000)


@pytest.mark.parametrize("value", ["soon", "2024", "20240501", "12:30", "2024-13-01", "2024-05-01T25:00", "", 20240501, True])
def test_what_is_no_time_is_none(value: object) -> None:
    assert instant(value) is None


def test_a_number_is_not_ordered_with_a_time() -> None:
    wanted = F("day") > "2024-05-01"
    assert isinstance(wanted, Ordered)
    assert wanted.is_time
    assert not matches(wanted, "s", {"day": 10**18})
    assert matches(wanted, "s", {"day": "2024-05-02"})


def test_conditions_nested_without_end_are_refused() -> None:
    where: dict[str, object] = {"a": 1}
    for _ in range(MAX_DEPTH + 1):
        where = {"not": where}
    with pytest.raises(RequestError, match="nested more than 50 deep"):
        parse(where)


def test_a_chain_of_one_operator_is_as_flat_as_a_list() -> None:
    values = range(MAX_CONDITIONS)
    assert reduce(or_, (F("a") == value for value in values)) == parse({"or": [{"a": value} for value in values]})


def test_more_conditions_than_a_store_can_be_asked_are_refused() -> None:
    many = [F("a") == value for value in range(MAX_CONDITIONS + 1)]
    for where in ({"or": many}, reduce(and_, many)):
        with pytest.raises(RequestError, match=f"has {MAX_CONDITIONS + 1} conditions"):
            parse(where)
    deep = many[0]
    for _ in range(MAX_DEPTH + 1):
        deep = ~deep
    with pytest.raises(RequestError, match="nested more than"):
        parse(deep)


@pytest.mark.parametrize("number", [10**400, -(10**400), float("inf"), float("nan")])
@pytest.mark.parametrize("operator", ["==", "<", ">=", "!="])
def test_a_number_that_no_store_holds_is_refused(operator: str, number: float) -> None:
    with pytest.raises(RequestError, match=r"finite number|orders numbers"):
        parse({"year": {operator: number}})


def test_a_field_is_no_key_of_a_dictionary() -> None:
    with pytest.raises(TypeError):
        hash(F("year"))
