"""Markdown: headings become the sections' titles. Offsets point into the decoded file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tripod.documents import Document
from tripod.retrieval.converters.encoding import decode
from tripod.retrieval.converters.outline import Heading, sections_of

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(?=[^\n]*\S)(?:.*\n)*?---[ \t]*(?:\r?\n|\Z)")
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*\r?$", re.MULTILINE)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?\Z")
_CLOSING_MARKS = re.compile(r"(?:^|(?<=[ \t]))#+\Z")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*\r?\n?\Z")
_NOT_A_PARAGRAPH = re.compile(r"\s*\Z| {4}|\t| {0,3}(?:[#>|]|[-*+][ \t]|\d+[.)][ \t]|<)")
_INLINE = (
    (re.compile(r"\{[^{}]*\}\s*\Z"), ""),  # { #anchor }
    (re.compile(r"!?\[([^\[\]]*)\]\([^()]*(?:\([^()]*\)[^()]*)?\)"), r"\1"),
    (re.compile(r"(?<!`)`+([^`]+)`+"), r"\1"),
    (re.compile(r"(\*\*|__|\*)(?=\S)(.+?)\1"), r"\2"),
)


class Markdown:
    """CommonMark headings, of both kinds; code fences, comments and YAML front matter are not taken for headings."""

    suffixes = frozenset({".md", ".markdown"})

    def convert(self, content: bytes, source: str) -> Document:
        text, encoding = decode(content)
        front = _FRONT_MATTER.match(text)
        start = front.end() if front else 0
        found = list(headings(text, start))
        title = _FRONT_TITLE.search(front[0]) if front else None
        return Document(
            source=source,
            text=text,
            title=title[1].strip("\"'") if title else next((heading.title for heading in found), ""),
            sections=sections_of(found, start, len(text)),
            metadata={"format": "markdown", "encoding": encoding},
        )


def headings(text: str, start: int) -> Iterator[Heading]:
    """The headings of a Markdown text from `start` on, in order."""
    fence = ""  # the marks that opened the code block we are in
    in_comment = False
    paragraph: re.Match[str] | None = None  # the line before, if an underline may make it a heading
    for line in _LINE.finditer(text, start):
        mark = _FENCE.match(line[0])
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
            continue
        if in_comment:
            in_comment = "-->" not in line[0]
            continue
        if mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence, paragraph = mark[1], None
        elif line[0].lstrip().startswith("<!--"):
            in_comment, paragraph = "-->" not in line[0], None
        elif atx := _ATX.match(line[0].rstrip()):
            yield Heading(line.start(), len(atx[1]), _plain(_CLOSING_MARKS.sub("", atx[2] or "")))
            paragraph = None
        elif paragraph and (underline := _SETEXT.match(line[0])):
            yield Heading(paragraph.start(), 1 if underline[1][0] == "=" else 2, _plain(paragraph[0]))
            paragraph = None
        else:
            paragraph = None if _NOT_A_PARAGRAPH.match(line[0]) else line


def _plain(title: str) -> str:
    for pattern, replacement in _INLINE:
        title = pattern.sub(replacement, title)
    return " ".join(title.split())
