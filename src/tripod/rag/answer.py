"""An answer, and which of its characters are supported by which characters of which passage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from tripod.documents import Passage
from tripod.errors import CitationError
from tripod.messages import Reply, Usage
from tripod.trace import Span

if TYPE_CHECKING:
    from tripod.rag.provenance import SentenceOrigin

Kind = Literal["extractive", "generated", "abstained"]

_LINES = {".docx": "paragraph", ".rtf": "paragraph", ".xlsx": "row", ".xlsm": "row", ".ipynb": "cell"}  # what their converters count
_PAGES = {".pptx": "slide", ".epub": "part", ".mbox": "message"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """`answer.text[start:end]` is supported by `document.text[source_start:source_end]`, which lies in `passage`."""

    start: int
    end: int
    number: int  # as in the marker [2]: the passage's place among those given, from 1
    passage: Passage
    source_start: int
    source_end: int
    is_quotation: bool  # the answer repeats the words of the source; otherwise it reports the passage in its own words
    line: int | None  # of the first supporting character, from 1; None where the source has pages

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise CitationError(f"citation [{self.number}] supports the empty stretch [{self.start}, {self.end}) of the answer")
        if not self.passage.start <= self.source_start < self.source_end <= self.passage.end:
            raise CitationError(
                f"citation [{self.number}] points to characters [{self.source_start}, {self.source_end}) of {self.source!r}, "
                f"outside its passage [{self.passage.start}, {self.passage.end})"
            )

    @property
    def quote(self) -> str:
        """The supporting text exactly as it stands in the source, line breaks included."""
        return self.passage.text[self.source_start - self.passage.start : self.source_end - self.passage.start]

    @property
    def source(self) -> str:
        return self.passage.source

    @property
    def section(self) -> str:
        return self.passage.section

    @property
    def page(self) -> int | None:
        return self.passage.page

    @property
    def place(self) -> str:
        """Where a person finds it: `contextlib.py:612, suppress`."""
        return place(self.source, self.section, line=self.line, page=self.page)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was answered, with what it rests on. An abstained answer says so in `text` and cites nothing.

    Raises:
        CitationError: a citation reaches beyond the text, names a number that no passage has, or another passage than its number says.
    """

    question: str
    text: str
    kind: Kind
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()  # all that were given, in the order of their numbers
    confidence: float = 0.0  # 0 to 1: how likely the passages answer the question
    model: str = ""  # empty where no language model was used
    usage: Usage = Usage()
    notes: tuple[str, ...] = ()  # what the reader should know, such as that the search was lexical
    trace: tuple[Span, ...] = ()
    reply: Reply | None = None  # what the model wrote, with its tokens and the engine's steps; None where none was asked
    origins: tuple[SentenceOrigin, ...] = ()  # of each sentence, where `ask` was given a provenance

    def __post_init__(self) -> None:
        for citation in self.citations:
            if citation.end > len(self.text):
                raise CitationError(
                    f"citation [{citation.number}] supports characters [{citation.start}, {citation.end}) of an answer "
                    f"of {len(self.text)} characters"
                )
            if not 1 <= citation.number <= len(self.passages) or self.passages[citation.number - 1] != citation.passage:
                raise CitationError(
                    f"citation [{citation.number}] names {citation.passage.id}, which is not passage {citation.number} "
                    f"of the {len(self.passages)} that were given"
                )


def support(start: int, end: int, number: int, passage: Passage, span: tuple[int, int], *, is_quotation: bool) -> Citation:
    """The citation of `passage.text[slice(*span)]`. Its line is counted from the passage's, which is exact where the text is the file's."""
    line = None if passage.line is None else passage.line + passage.text.count("\n", 0, span[0])
    return Citation(
        start=start,
        end=end,
        number=number,
        passage=passage,
        source_start=passage.start + span[0],
        source_end=passage.start + span[1],
        is_quotation=is_quotation,
        line=line,
    )


def place(source: str, section: str, *, line: int | None, page: int | None) -> str:
    """Where a person finds a passage: file, then line or page, or what the format has in their stead, then section."""
    suffix = PurePosixPath(source).suffix.lower()
    where = source
    if line is not None:
        where += f", {_LINES[suffix]} {line}" if suffix in _LINES else f":{line}"
    if page is not None:
        where += f", {_PAGES.get(suffix, 'page')} {page}"
    return f"{where}, {section}" if section else where
