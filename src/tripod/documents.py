"""What is read and what is found: documents, their sections and pages, and the passages cut from them.

All offsets are half-open character ranges into `Document.text`. For text, Markdown, reStructuredText and source code
that text is the decoded file itself, so the offsets point into the file; for HTML and PDF it is the extracted text,
which the index keeps, and `pages` says which page a character came from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tripod.errors import ConfigError

Scalar: TypeAlias = str | int | float | bool
Metadata: TypeAlias = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document to index, under a title such as a heading path or a qualified function name."""

    start: int
    end: int
    title: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a paged source; `number` counts from 1."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source, converted to text. Only what lies in `sections` is indexed; without any, all of it is."""

    source: str  # the path relative to the synced folder, or a URI
    text: str
    title: str = ""
    sections: tuple[Section, ...] = ()
    pages: tuple[Page, ...] = ()
    metadata: Metadata = field(default_factory=dict)

    def __post_init__(self) -> None:
        spans: tuple[Section | Page, ...] = (*self.sections, *self.pages)
        for span in spans:
            if not 0 <= span.start <= span.end <= len(self.text):
                raise ConfigError(
                    f"{type(span).__name__} [{span.start}, {span.end}) of {self.source!r} lies outside its text "
                    f"of {len(self.text)} characters; a converter must give offsets into Document.text"
                )

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds the character at `offset`; None where the source has no pages."""
        position = bisect_right(self.pages, offset, key=lambda page: page.start) - 1
        return self.pages[position].number if position >= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A stretch of a document, small enough to read at once. Law: `document.text[start:end] == text`."""

    source: str
    start: int
    end: int
    text: str
    section: str = ""  # the title of the section that it was cut from
    page: int | None = None  # the page of its first character, where the source has pages
    line: int | None = None  # the line of its first character, from 1, where the offsets point into a file
    metadata: Metadata = field(default_factory=dict)
    score: float | None = None  # set by a search: larger is better; comparable within one result list only

    @property
    def id(self) -> str:
        """Names the passage within one version of its source."""
        return f"{self.source}#{self.start}-{self.end}"
