"""The language reference that comes with every Python: `pydoc_data/topics.py`, one dictionary of topic to text.

The texts stand there as hundreds of quoted and escaped pieces, which nobody wants to read in a quotation. So the document's
text is what the pieces spell, one topic after the other, and `Document.lines` leads back to the line of each piece.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from tripod.documents import Line, Section
from tripod.retrieval.converters.outline import sections_of
from tripod.retrieval.converters.restructuredtext import titles

_OPENING = re.compile(r"(?:\s*#.*\n)*\s*topics\s*=\s*\{")
_BETWEEN_TOPICS = "\n\n"


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics as one text, with a section a heading and the lines of the file."""

    text: str
    sections: tuple[Section, ...]
    lines: tuple[Line, ...]


def read_topics(source_text: str) -> Topics | None:
    """The topics in a module that consists of one dictionary of texts named `topics`; None for any other module."""
    if not _OPENING.match(source_text) or not _is_topics(source_text):
        return None
    texts = list(_texts(source_text))
    pieces: list[str] = []
    sections: list[Section] = []
    lines: list[Line] = []
    seen: set[str] = set()  # many sections stand in two topics, word for word; one of them is enough to find
    start = 0
    for topic in texts:
        text = "".join(piece for piece, _ in topic)
        offset = start
        for piece, line in topic:
            lines.extend(Line(offset, line) for _ in piece[:1])
            offset += len(piece)
        for section in sections_of(titles(text), 0, len(text)):
            words = text[section.start : section.end].strip()
            if words and words not in seen:
                seen.add(words)
                sections.append(Section(start + section.start, start + section.end, section.title))
        pieces.append(text)
        start += len(text) + len(_BETWEEN_TOPICS)
    return Topics(_BETWEEN_TOPICS.join(pieces), tuple(sections), tuple(lines))


def _is_topics(source_text: str) -> bool:
    """Whether the module is nothing but a dictionary of texts; a module of settings may begin in the same way."""
    try:
        body = ast.parse(source_text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Assign) else None
    return (
        isinstance(value, ast.Dict)
        and bool(value.keys)
        and all(isinstance(entry, ast.Constant) and isinstance(entry.value, str) for entry in (*value.keys, *value.values))
    )


def _texts(source_text: str) -> Iterator[list[tuple[str, int]]]:
    """For each topic, the pieces of its text with their lines in the file."""
    topic: list[tuple[str, int]] | None = None  # None while we read a key
    for token in tokenize.generate_tokens(io.StringIO(source_text).readline):
        if token.type == tokenize.STRING and topic is not None:
            topic.extend(_pieces(token))
        elif token.string == ":":
            topic = []
        elif token.string in (",", "}") and topic is not None:
            yield topic
            topic = None


def _pieces(token: tokenize.TokenInfo) -> Iterator[tuple[str, int]]:
    """What a literal spells, with its lines in the file: Python 3.13 and later write a topic as one raw literal of many lines."""
    rows = ast.literal_eval(token.string).splitlines(keepends=True)
    num_lines = token.end[0] - token.start[0]
    is_one_to_one = sum(row.endswith("\n") for row in rows) == num_lines
    for i, row in enumerate(rows):
        yield row, token.start[0] + (i if is_one_to_one else 0)
