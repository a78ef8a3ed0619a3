"""A filter to an SQL condition on a row of `sources` in SQLite, with all values as parameters."""

from __future__ import annotations

import json
import sqlite3
from typing import TypeAlias, assert_never

from tripod.filters import And, Contains, Exists, Filter, Not, OneOf, Or, Ordered, instant

Parameter: TypeAlias = str | int | float

_SOURCE = "(SELECT 'source' AS key, 'text' AS type, sources.source AS value)"
_METADATA = "json_each(sources.metadata)"
_LARGEST_INTEGER = 2**63 - 1


def condition(wanted: Filter) -> tuple[str, list[Parameter]]:
    """The condition and its parameters, for a connection prepared by `add_functions`."""
    match wanted:
        case And(parts) | Or(parts):
            conditions = [condition(part) for part in parts]
            is_and = isinstance(wanted, And)
            joined = (" AND " if is_and else " OR ").join(sql for sql, _ in conditions) or str(int(is_and))
            return f"({joined})", [parameter for _, parameters in conditions for parameter in parameters]
        case Not(part):
            sql, parameters = condition(part)
            return f"NOT {sql}", parameters
        case OneOf("source", values):
            return "source IN (SELECT value FROM json_each(?))", [json.dumps([value for value in values if isinstance(value, str)])]
        case OneOf(field, values):
            # JSON tells true from 1, and 1 from "1"; 1 and 1.0 are one number.
            same = "entry.value = wanted.value AND replace(entry.type, 'integer', 'real') = replace(wanted.type, 'integer', 'real')"
            return f"EXISTS (SELECT 1 FROM {_METADATA} entry JOIN json_each(?) wanted ON {same} WHERE entry.key = ?)", [
                json.dumps(values),
                field,
            ]
        case Ordered(field, order, bound, is_time):
            if is_time:
                return _entry(field, f"entry.type = 'text' AND instant(entry.value) {order} ?", bound)
            return _entry(field, f"entry.type IN ('integer', 'real') AND entry.value {order} ?", bound)
        case Contains(field, text):
            return _entry(field, "entry.type = 'text' AND instr(entry.value, ?) > 0", text)
        case Exists(field):
            return _entry(field, "1")
        case _:
            assert_never(wanted)


def add_functions(connection: sqlite3.Connection) -> None:
    connection.create_function("instant", 1, instant, deterministic=True)


def _entry(field: str, holds: str, *values: Parameter) -> tuple[str, list[Parameter]]:
    entries = _SOURCE if field == "source" else _METADATA
    parameters = [float(value) if isinstance(value, int) and abs(value) > _LARGEST_INTEGER else value for value in values]
    return f"EXISTS (SELECT 1 FROM {entries} entry WHERE entry.key = ? AND {holds})", [field, *parameters]
