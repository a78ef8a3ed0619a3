"""What is read and what is found: documents, their sections and pages, and the passages cut from them.

All offsets are half-open character ranges into `Document.text`. For text, Markdown, reStructuredText, CSV and source code
that text is the decoded file itself, so the offsets point into the file; for all other formats it is the extracted text,
which the index keeps, and `pages` or `lines` say which page or line of the file a character came from. A page may be a slide,
a part of a book or a message of a box; a line may be a row of a sheet, a paragraph of a letter or a cell of a notebook.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from tripod.errors import ConfigError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

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
    """One page of a paged source, or what it has in its stead; `number` counts from 1."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Line:
    """From the character `start` of an extracted text on, the words stand at line `number` of the file, from 1."""

    start: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source, converted to text. Only what lies in `sections` is indexed; without any, all of it is."""

    source: str  # the path relative to the synced folder, or a URI
    text: str
    title: str = ""
    sections: tuple[Section, ...] = ()
    pages: tuple[Page, ...] = ()
    lines: tuple[Line, ...] = ()  # only where `text` was extracted from a file with lines, such as HTML, or rows
    metadata: Metadata = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        spans: tuple[Section | Page, ...] = (*self.sections, *self.pages)
        for span in spans:
            if not 0 <= span.start <= span.end <= len(self.text):
                raise ConfigError(
                    f"{type(span).__name__} [{span.start}, {span.end}) of {self.source!r} lies outside its text "
                    f"of {len(self.text)} characters; a converter must give offsets into Document.text"
                )
        for name, value in self.metadata.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"metadata[{name!r}]={value} of {self.source!r} is no number that an index can hold; leave it out")

    def passage(self, start: int, end: int, *, section: str = "", page: int | None = None, line: int | None = None) -> Passage:
        """The stretch `text[start:end]`, with what this document says of itself."""
        return Passage(
            source=self.source,
            start=start,
            end=end,
            text=self.text[start:end],
            section=section,
            page=page,
            line=line,
            metadata=self.metadata,
        )

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds the character at `offset`; None where the source has no pages."""
        position = bisect_right(self.pages, offset, key=lambda page: page.start) - 1
        return self.pages[position].number if position >= 0 else None

    def line_at(self, offset: int) -> int | None:
        """The line of the file, from 1, that holds the character at `offset`; None where the source has pages instead."""
        if self.lines:
            position = bisect_right(self.lines, offset, key=lambda line: line.start) - 1
            return self.lines[max(position, 0)].number
        return None if self.pages else self.text.count("\n", 0, offset) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A stretch of a document, small enough to read at once. Law: `document.text[start:end] == text`."""

    source: str
    start: int
    end: int
    text: str
    section: str = ""  # the title of the section that it was cut from
    page: int | None = None  # the page of its first character, where the source has pages
    line: int | None = None  # the line of the file that its first character came from, from 1; None where there are pages
    metadata: Metadata = field(default_factory=dict, hash=False)
    score: float | None = None  # set by a search: larger is better; comparable within one result list only

    @property
    def id(self) -> str:
        """Names the passage within one version of its source."""
        return f"{self.source}#{self.start}-{self.end}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """What an index remembers of a source, to tell whether it changed since."""

    digest: str  # sha256 of the content
    root: str = ""  # the synced folder that it came from; empty for a document that a program added
    size: int = -1  # bytes; -1 where there is no file
    mtime_ns: int = -1  # -1 where it must not be trusted: compare the digest instead
    is_embedded: bool = False  # every passage has a vector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredSource:
    """All that a store keeps of a source: enough to put it into another store."""

    document: Document
    passages: tuple[Passage, ...]  # in the order of their places
    vectors: NDArray[numpy.float32] | None  # [len(passages), dim]
    state: SourceState


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store holds, and who made it."""

    num_sources: int
    num_passages: int
    num_vectors: int
    num_unembedded: int  # sources without vectors
    num_bytes: int  # that it takes up
    dim: int  # of the vectors; 0 without any
    vectors: str  # their format: f32, f16 or int8
    pipeline: str
    embedder: str | None
    approximate: str | None = None  # what searches vectors approximately; None: they are searched exactly
