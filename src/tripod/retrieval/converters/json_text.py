"""JSON and JSON Lines: the file is the document, with the escapes in its texts read, so that its words are found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tripod.documents import Document, Section
from tripod.errors import ConversionError
from tripod.retrieval.converters.encoding import decode

_ESCAPES = re.compile(r"\\(?:(u[dD][89abAB]..\\u[dD][c-fC-F]..|u....)|([nrtbf])|.)", re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_TITLE = 200  # characters


class Json:
    """A section is a member of the object, or an object of the list, that the file holds; in JSON Lines it is a line.

    Lines are the file's. Offsets point into the text that the index keeps, where `\\u00e9` is `é` and `\\n` is a space.
    """

    suffixes = frozenset({".json", ".jsonl", ".ndjson"})

    def convert(self, content: bytes, source: str) -> Document:
        raw, encoding = decode(content)
        kind = "json" if source.lower().endswith(".json") else "jsonl"
        try:
            spans = list(_members(raw) if kind == "json" else _rows(raw))
        except ValueError as error:
            raise ConversionError(f"it is not {'JSON' if kind == 'json' else 'JSON Lines'}: {error}") from None
        except RecursionError:
            raise ConversionError("it is nested too deeply") from None
        borders = iter(sorted({border for start, end, _ in spans for border in (start, end)}))
        text, places = _read_escapes(raw, borders)
        return Document(
            source=source,
            text=text,
            sections=tuple(Section(places[start], places[end], title[:_MAX_TITLE]) for start, end, title in spans),
            metadata={"format": kind, "encoding": encoding},
        )


def _members(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and title of each section; none where the file holds a plain value, or a list of those."""
    value = json.loads(text)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        yield from _items(text, is_object=False)
    elif isinstance(value, dict) and value:
        yield from _items(text, is_object=True)


def _items(text: str, *, is_object: bool) -> Iterator[tuple[int, int, str]]:
    decoder = json.JSONDecoder()
    position = _skip(text, _skip(text, 0) + 1)  # the opening bracket
    number = 0
    while text[position] not in "]}":
        start, title = position, f"[{number}]"
        if is_object:
            title, position = decoder.raw_decode(text, position)
            position = _skip(text, _skip(text, position) + 1)  # the colon
        _, position = decoder.raw_decode(text, position)
        yield start, position, title
        number += 1
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _rows(text: str) -> Iterator[tuple[int, int, str]]:
    start = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            yield start, start + len(line), ""
        start += len(line) + 1


def _skip(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _read_escapes(text: str, borders: Iterator[int]) -> tuple[str, dict[int, int]]:
    """The text with its escapes read, and where each of the borders stands in it. No line feed comes or goes."""
    pieces: list[str] = []
    places: dict[int, int] = {}
    done = length = 0
    border = next(borders, None)
    for escape in _ESCAPES.finditer(text):
        while border is not None and border <= escape.start():
            places[border] = length + border - done
            border = next(borders, None)
        pieces += [text[done : escape.start()], _character(escape)]
        length += len(pieces[-2]) + len(pieces[-1])
        done = escape.end()
    while border is not None:
        places[border] = length + border - done
        border = next(borders, None)
    return "".join([*pieces, text[done:]]), places


def _character(escape: re.Match[str]) -> str:
    if escape[1]:
        character: str = json.loads(f'"{escape[0]}"')
        return character if character.isprintable() and character not in '"\\' else " "
    return " " if escape[2] else escape[0]
