"""Metadata filters: `{"format": "pdf", "year": [2024, 2025]}` to a condition on sources, with all values as parameters."""

from __future__ import annotations

from collections.abc import Sequence

from tripod.documents import Scalar
from tripod.errors import RequestError
from tripod.protocols import Where


def condition(where: Where) -> tuple[str, list[str | int | float]]:
    """An SQL condition on a row of `sources`, and its parameters.

    Every field must match; a field matches if it equals the wanted value, or one of several. The field `source` is the
    source's name; any other is looked up in its metadata, and a source without that field does not match.

    Raises:
        RequestError: a value that metadata cannot hold, or no value at all.
    """
    conditions: list[str] = []
    parameters: list[str | int | float] = []
    for name, wanted in where.items():
        values: Sequence[Scalar] = [wanted] if isinstance(wanted, str | int | float) else list(_checked(name, wanted))
        if not values:
            raise RequestError(f"where[{name!r}] is empty, so nothing could match; give a value, or leave the field out", param="where")
        alternatives: list[str] = []
        for value in values:
            sql, more = _equals(name, value)
            alternatives.append(sql)
            parameters.extend(more)
        conditions.append(f"({' OR '.join(alternatives)})")
    return " AND ".join(conditions) or "1", parameters


def _checked(name: str, wanted: object) -> Sequence[Scalar]:
    if isinstance(wanted, list | tuple | set | frozenset) and all(isinstance(value, str | int | float) for value in wanted):
        return list(wanted)
    raise RequestError(f"where[{name!r}]={wanted!r} is not a text, a number, a bool or a list of those", param="where")


def _equals(name: str, value: Scalar) -> tuple[str, list[str | int | float]]:
    if name == "source":
        return "source = ?", [str(value)]
    entry = "EXISTS (SELECT 1 FROM json_each(sources.metadata) entry WHERE entry.key = ? AND "
    if isinstance(value, bool):  # before int: True is one, and JSON tells them apart
        return entry + "entry.type = ?)", [name, "true" if value else "false"]
    if isinstance(value, str):
        return entry + "entry.type = 'text' AND entry.value = ?)", [name, value]
    return entry + "entry.type IN ('integer', 'real') AND entry.value = ?)", [name, value]
