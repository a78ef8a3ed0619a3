"""A text put together of parts that a reader extracts, with the spans that lead back into the file."""

from __future__ import annotations

from tripod.documents import Document, Line, Metadata, Page
from tripod.retrieval.converters.outline import Heading, sections_of


class Composed:
    """Collects parts in reading order; headings, pages and lines are noted at the place where the text stands then."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._headings: list[Heading] = []
        self._pages: list[Page] = []
        self._lines: list[Line] = []
        self.length = 0

    def add(self, text: str, *, end: str = "\n") -> None:
        """The next part of the text."""
        clean = characters(text) + end
        self._pieces.append(clean)
        self.length += len(clean)

    def heading(self, level: int, title: str) -> None:
        """A heading begins here; its own words are added as text."""
        self._headings.append(Heading(self.length, level, " ".join(characters(title).split())))

    def line(self, number: int) -> None:
        """From here on, the text stands at this line of the file: a row of a sheet, a paragraph, a cell."""
        if not self._lines or self._lines[-1] != Line(self.length, number):
            self._lines.append(Line(self.length, number))

    def page(self, number: int, start: int) -> None:
        """What was added since `start` is this page."""
        self._pages.append(Page(number, start, self.length))

    def document(self, source: str, *, title: str = "", metadata: Metadata) -> Document:
        """What was collected, with a section a heading."""
        return Document(
            source=source,
            text="".join(self._pieces),
            title=" ".join(characters(title).split()) or next((heading.title for heading in self._headings if heading.title), ""),
            sections=sections_of(self._headings, 0, self.length) if self._headings else (),
            pages=tuple(self._pages),
            lines=tuple(self._lines),
            metadata=metadata,
        )


def characters(text: str) -> str:
    """The text without NUL and halves of surrogate pairs, which no index can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore").replace("\0", "")
