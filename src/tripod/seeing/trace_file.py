"""Spans in a file, a line of JSON for each that no other holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError
from tripod.trace import Span


def write_trace(path: Path, spans: Iterable[Span]) -> None:
    """Write spans, all or none. What JSON does not know is written as text."""
    with atomic_file(path) as stream:
        for span in spans:
            stream.write((json.dumps(_span(span), ensure_ascii=False) + "\n").encode(errors="surrogatepass"))


def read_trace(path: Path) -> tuple[Span, ...]:
    """The spans of a file. Attributes are what JSON knows.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        return tuple(_read(json.loads(line)) for line in path.read_bytes().splitlines())  # as bytes: in a text, U+2028 ends a line too
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no trace; write one with tripod.seeing.trace_file.write_trace(path, spans)") from None


def plain(value: Any) -> Any:
    """A value as JSON knows it; one that prints itself in a way of its own, as a prompt does, as what it prints."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def _span(span: Span) -> dict[str, Any]:
    return {
        "name": span.name,
        "start_s": span.start_s,
        "duration_s": span.duration_s,
        "attributes": plain(span.attributes),
        "children": [_span(child) for child in span.children],
    }


def _read(form: dict[str, Any]) -> Span:
    children = tuple(_read(child) for child in form["children"])
    return Span(form["name"], form["start_s"], form["duration_s"], dict(form["attributes"]), children)
