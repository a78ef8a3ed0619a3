"""reStructuredText: section titles as docutils finds them. Offsets point into the decoded file."""

from __future__ import annotations

import re

from tripod.documents import Document
from tripod.retrieval.converters.encoding import decode
from tripod.retrieval.converters.outline import Heading, sections_of

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*\Z")
_PEP = re.compile(r"\APEP:[ \t]*(\d+)[ \t]*\r?\nTitle:[ \t]*(.+?)[ \t]*\r?\n")
_ROLE = re.compile(r"(?<![\w:.+`-])(?::[\w:.+-]+:)?`+(?:([^`<]+)<[^`>]*>|([^`]+))`+_{0,2}")


class RestructuredText:
    """Underlined and overlined titles; the level of a style is the order in which it first appears."""

    suffixes = frozenset({".rst"})

    def convert(self, content: bytes, source: str) -> Document:
        text, encoding = decode(content)
        headings = titles(text)
        pep = _PEP.match(text)
        return Document(
            source=source,
            text=text,
            title=f"PEP {pep[1]}: {pep[2]}" if pep else next((heading.title for heading in headings), ""),
            sections=sections_of(headings, 0, len(text)),
            metadata={"format": "restructuredtext", "encoding": encoding},
        )


def titles(text: str) -> list[Heading]:
    """The section titles of a text, by the rules of docutils, in order.

    A title stands unindented after a blank line, above a line that repeats one punctuation mark at least as often as the
    title has characters (or four times), and perhaps below another such line.
    """
    lines = list(_LINE.finditer(text))
    stripped = [line[0].rstrip() for line in lines] + ["", ""]
    headings: list[Heading] = []
    styles: list[tuple[str, bool]] = []  # (mark, has an overline); the place in this list is the level
    for i in range(len(lines)):
        if i and stripped[i - 1] and not stripped[i - 1].startswith(".. "):
            continue
        over, title, under = stripped[i], stripped[i + 1], stripped[i + 2]
        is_overlined = bool(_ADORNMENT.match(over)) and over == under and len(over) >= len(title) > 0 and not _ADORNMENT.match(title)
        if not is_overlined:
            title, under = stripped[i], stripped[i + 1]
            if not _is_underlined(title, under):
                continue
        style = (under[0], is_overlined)
        if style not in styles:
            styles.append(style)
        headings.append(Heading(lines[i].start(), styles.index(style) + 1, _plain(title)))
    return headings


def _is_underlined(title: str, under: str) -> bool:
    if not title or title[0].isspace() or _ADORNMENT.match(title) or not _ADORNMENT.match(under):
        return False
    return len(under) >= min(len(title), 4)


def _plain(title: str) -> str:
    return " ".join(_ROLE.sub(lambda role: (role[1] or role[2]).rstrip(), title).replace("*", "").split())
