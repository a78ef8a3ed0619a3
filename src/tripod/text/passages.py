"""Spans of a document to passages: what all splitters do in the end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tripod.documents import Document, Passage, Section

_NON_SPACE = re.compile(r"\S")


def sections_to_cut(document: Document) -> Iterator[Section]:
    """The sections in order, all of the text where there are none; of two that overlap, the later begins where the earlier ends."""
    covered_to = 0
    for section in sorted(document.sections or (Section(0, len(document.text)),), key=lambda section: (section.start, -section.end)):
        start = max(section.start, covered_to)
        if start < section.end:
            yield Section(start, section.end, section.title)
            covered_to = section.end


def passages_at(document: Document, spans: Iterable[Section]) -> list[Passage]:
    """A passage for each span that holds more than white space, without that at its ends, and with the page or line of its beginning.

    Args:
        document: what is cut.
        spans: in the order of their starts; they may overlap, but one within the one before adds nothing. Their title becomes the
            passage's section.
    """
    found: list[Passage] = []
    line, counted_to = 1, 0
    for span in spans:
        first = _NON_SPACE.search(document.text, span.start, span.end)
        if first is None:
            continue
        start, end = first.start(), span.end
        while document.text[end - 1].isspace():
            end -= 1
        if found and end <= found[-1].end:
            continue
        if document.lines:  # extracted text: its own lines are not the file's
            line = document.line_at(start) or 1
        elif not document.pages:
            line += document.text.count("\n", counted_to, start)
            counted_to = start
        found.append(
            document.passage(
                start,
                end,
                section=span.title,
                page=document.page_at(start),
                line=None if document.pages and not document.lines else line,
            )
        )
    return found
