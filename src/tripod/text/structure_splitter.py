"""Passages along the structure of a page: whole paragraphs, lists, tables and fenced code under their headings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tripod.documents import Document, Passage, Section
from tripod.text.passages import passages_at, sections_to_cut
from tripod.text.splitter import Cutter, approximate_tokens, budget, check_budget

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True, slots=True)
class Structure:
    """No passage crosses a heading, and no table, list item or fenced block of code is cut that fits in one.

    For Markdown, reStructuredText and HTML, whose converters make a section of each heading, with the path of the headings above as
    its title. Blocks of one section are packed while they fit; a block that alone is too large is cut as `split` cuts.
    """

    max_tokens: int
    count_tokens: Callable[[str], int] = approximate_tokens

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)

    @property
    def fingerprint(self) -> str:
        return f"blocks under headings, {budget(self.max_tokens, self.count_tokens)}"

    def split(self, document: Document) -> list[Passage]:
        return passages_at(document, self._spans(document))

    def _spans(self, document: Document) -> Iterator[Section]:
        text = document.text
        cutter = Cutter(text, self.max_tokens, self.count_tokens)
        for section in sections_to_cut(document):
            start = end = section.start
            for block_start, block_end in blocks(text, section.start, section.end):
                if end > start and self.count_tokens(text[start:block_end].strip()) > self.max_tokens:
                    yield from (Section(*piece, section.title) for piece in cutter.cut(start, end))
                    start = block_start
                end = block_end
            yield from (Section(*piece, section.title) for piece in cutter.cut(start, end))


def blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The blocks of text[start:end], which together are all of it: a block ends after blank lines, which within a fence end nothing."""
    fence, begin, is_blank = "", start, False
    for line in _LINE.finditer(text, start, end):
        mark = _FENCE.match(line[0])
        if fence:
            if mark and mark[1].startswith(fence):
                fence = ""
            continue
        if is_blank and line[0].strip():
            yield begin, line.start()
            begin = line.start()
        is_blank = not line[0].strip()
        if mark:
            fence = mark[1]
    if begin < end:
        yield begin, end
