"""Metadata filters: `{"format": "pdf", "year": [2024, 2025]}` to a condition on sources, with all values as parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from tripod.documents import Scalar
from tripod.errors import RequestError
from tripod.protocols import Where

_AS_SOURCE = "source IN (SELECT value FROM json_each(?))"
# JSON tells true from 1, and 1 from "1"; 1 and 1.0 are one number.
_AS_METADATA = """EXISTS (
    SELECT 1 FROM json_each(sources.metadata) entry JOIN json_each(?) wanted ON entry.value = wanted.value
    WHERE entry.key = ? AND replace(entry.type, 'integer', 'real') = replace(wanted.type, 'integer', 'real'))"""


def condition(where: Where) -> tuple[str, list[str]]:
    """An SQL condition on a row of `sources`, and its parameters.

    Every field must match; a field matches if it equals the wanted value, or one of several, however many. The field `source` is
    the source's name; any other is looked up in its metadata, and a source without that field does not match.

    Raises:
        RequestError: a value that metadata cannot hold, or no value at all.
    """
    conditions: list[str] = []
    parameters: list[str] = []
    for name, wanted in where.items():
        values = _values(name, wanted)
        if name == "source":
            conditions.append(_AS_SOURCE)
            parameters.append(json.dumps([str(value) for value in values]))
        else:
            conditions.append(_AS_METADATA)
            parameters += [json.dumps(values), _utf8(name)]
    return " AND ".join(conditions) or "1", parameters


def _values(name: str, wanted: object) -> Sequence[Scalar]:
    values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
    if not values:
        raise RequestError(f"where[{name!r}] is empty, so nothing could match; give a value, or leave the field out", param="where")
    scalars: list[Scalar] = [
        value for value in values if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    ]
    if len(scalars) < len(values):
        raise RequestError(f"where[{name!r}]={wanted!r} is not a text, a finite number, a bool or a list of those", param="where")
    return scalars


def _utf8(name: str) -> str:
    return name.encode(errors="replace").decode()
