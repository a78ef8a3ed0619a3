"""A filter to an SQL condition on a row of `sources` in PostgreSQL, with all values as parameters."""

from __future__ import annotations

import json
from typing import TypeAlias, assert_never

from tripod.documents import Scalar
from tripod.filters import And, Contains, Exists, Filter, Not, OneOf, Or, Ordered

Parameter: TypeAlias = str | int | float | list[str]


def condition(wanted: Filter) -> tuple[str, list[Parameter]]:
    """The condition and its parameters. It is true or false, never null, so that it can be negated."""
    match wanted:
        case And(parts) | Or(parts):
            conditions = [condition(part) for part in parts]
            is_and = isinstance(wanted, And)
            joined = (" AND " if is_and else " OR ").join(sql for sql, _ in conditions) or str(is_and)
            return f"({joined})", [parameter for _, parameters in conditions for parameter in parameters]
        case Not(part):
            sql, parameters = condition(part)
            return f"NOT {sql}", parameters
        case OneOf("source", values):
            return "source = ANY (%s)", [[without_nul(value) for value in values if isinstance(value, str)]]
        case OneOf(field, values):
            # jsonb tells true from 1, and 1 from "1"; 1 and 1.0 are one number.
            return "coalesce(fields -> %s = ANY (%s::jsonb[]), false)", [without_nul(field), [as_json(value) for value in values]]
        case Ordered(field, order, bound, is_time):
            if is_time:
                return f"coalesce((instants ->> %s)::bigint {order} %s, false)", [without_nul(field), bound]
            value, parameters = _value(field)
            is_number = f"jsonb_typeof({value}) = 'number'"
            return (
                f"CASE WHEN {is_number} THEN ({value} #>> '{{}}')::numeric {order} %s::numeric ELSE false END",
                [*parameters, *parameters, repr(bound)],
            )
        case Contains(field, text):
            value, parameters = _value(field)
            is_text = f"jsonb_typeof({value}) = 'string'"
            return f"CASE WHEN {is_text} THEN strpos({value} #>> '{{}}', %s) > 0 ELSE false END", [
                *parameters,
                *parameters,
                without_nul(text),
            ]
        case Exists("source"):
            return "true", []
        case Exists(field):
            return "fields ? %s", [without_nul(field)]
        case _:
            assert_never(wanted)


def as_json(value: Scalar) -> str:
    return json.dumps(without_nul(value) if isinstance(value, str) else value)


def without_nul(text: str) -> str:
    """PostgreSQL's text holds any character but NUL. U+FDD0, which stands for no character, begins what stands for it or for itself."""
    return text.replace("\ufdd0", "\ufdd0\ufdd1").replace("\0", "\ufdd0\ufdd2") if "\0" in text or "\ufdd0" in text else text


def with_nul(text: str) -> str:
    """The text that `without_nul` was given."""
    return text.replace("\ufdd0\ufdd2", "\0").replace("\ufdd0\ufdd1", "\ufdd0") if "\ufdd0" in text else text


def _value(field: str) -> tuple[str, list[Parameter]]:
    return ("to_jsonb(source)", []) if field == "source" else ("(fields -> %s)", [without_nul(field)])
