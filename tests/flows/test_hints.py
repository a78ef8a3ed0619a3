"""What may stand for what: decided as a type checker decides it (expected values by mypy's rules)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Protocol, TypedDict

import pytest

from tripod.flows.hints import classes, fits, is_telling, show, streamed

UserId = NewType("UserId", int)


class Row(TypedDict):
    a: int


class Other(TypedDict):
    b: int


class Named(Protocol):
    name: str


class Dog:
    name = "rex"


class Puppy(Dog):
    pass


FITS: list[tuple[Any, Any]] = [
    (int, int),
    (bool, int),
    (int, float),
    (int, int | str),
    (int | str, int | str | None),
    (Puppy, Dog),
    (list[Puppy], Sequence[Dog]),
    (list[Puppy], Iterable[Dog]),
    (dict[str, int], Mapping[str, float]),
    (tuple[int, str], Sequence[int | str]),
    (tuple[int, ...], Sequence[int]),
    (tuple[int, bool], tuple[int, ...]),
    (UserId, int),
    (Literal["a"], str),
    (Literal["a"], Literal["a", "b"]),
    (Annotated[int, "kg"], int),
    (Any, Dog),
    (Dog, object),
    (Dog, Named),
    (None, None),
    (type(None), int | None),
    (list, list[int]),
    (Row, Mapping[str, Any]),
]
DOES_NOT_FIT: list[tuple[Any, Any]] = [
    (str, int),
    (Dog, Puppy),
    (int | None, int),
    (int, UserId),
    (str, Literal["a"]),
    (Literal["c"], Literal["a", "b"]),
    (list[int], list[str]),
    (list[Dog], Sequence[Puppy]),
    (tuple[int, int], tuple[int, int, int]),
    (tuple[int, str], tuple[int, ...]),
    (tuple[str, ...], tuple[int, ...]),
    (int, Named),
    (Row, Other),
    (None, int),
]


@pytest.mark.parametrize(("produced", "wanted"), FITS, ids=str)
def test_it_fits(produced: Any, wanted: Any) -> None:
    assert fits(produced, wanted)


@pytest.mark.parametrize(("produced", "wanted"), DOES_NOT_FIT, ids=str)
def test_it_does_not_fit(produced: Any, wanted: Any) -> None:
    assert not fits(produced, wanted)


def test_only_types_that_say_what_a_value_is_for_wire_by_themselves() -> None:
    assert [is_telling(one) for one in (Dog, list[Dog], dict[str, Dog], UserId, Dog | None, AsyncIterator[Dog])] == [True] * 6
    assert [is_telling(one) for one in (str, list[str], dict[str, Any], Any, str | None, Literal["a"], AsyncIterator[str])] == [False] * 7


def test_what_isinstance_can_check() -> None:
    assert classes(list[Dog]) == (list,)
    assert classes(Dog | None) == (Dog, type(None))
    assert classes(float) == (float, int)
    assert classes(Row) == (dict,)
    assert classes(UserId) == (int,)
    assert classes(Any) is classes(Named) is classes(int | Any) is None
    assert (streamed(AsyncIterator[Dog]), streamed(list[Dog])) == (Dog, None)


def test_a_hint_is_shown_as_it_is_written() -> None:
    hints: list[Any] = [Dog, list[Dog], Dog | None, dict[str, list[int]], Literal["a"], tuple[int, ...], None]
    assert list(map(show, hints)) == ["Dog", "list[Dog]", "Dog | None", "dict[str, list[int]]", "Literal['a']", "tuple[int, ...]", "None"]
