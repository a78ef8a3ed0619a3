"""An answer cannot be built around a citation that does not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.rag.passages import BLOCKS, LOCKS
from tripod.errors import CitationError
from tripod.rag.answer import Answer, Citation, place, support

TEXT = "Blocks are freed."
CITATION = support(0, len(TEXT), 1, BLOCKS, (0, 7), is_quotation=False)


def answer(citation: Citation) -> Answer:
    return Answer(question="?", text=TEXT, kind="generated", citations=(citation,), passages=(BLOCKS, LOCKS))


def test_a_citation_that_holds_is_taken() -> None:
    assert answer(CITATION).citations[0].quote == "A block"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": len(TEXT) + 1}, "of an answer of 17 characters"),
        ({"number": 2}, "is not passage 2 of the 2"),
        ({"number": 3}, "is not passage 3 of the 2"),
        ({"number": 0}, "is not passage 0"),
        ({"passage": LOCKS, "source_start": 0, "source_end": 4}, "is not passage 1"),
    ],
)
def test_a_citation_of_something_else_than_was_given_is_refused(change: dict[str, object], message: str) -> None:
    citation = replace(CITATION, **change)
    with pytest.raises(CitationError, match=message):
        answer(citation)


@pytest.mark.parametrize(
    "change", [{"end": 0}, {"start": -1}, {"source_end": BLOCKS.end + 1}, {"source_start": BLOCKS.start - 1}, {"source_end": BLOCKS.start}]
)
def test_a_citation_of_nothing_or_outside_its_passage_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CitationError, match=r"empty stretch|outside its passage"):
        replace(CITATION, **change)


@pytest.mark.parametrize(
    ("source", "line", "page", "expected"),
    [
        ("a.md", 3, None, "a.md:3, S"),
        ("a.pdf", None, 2, "a.pdf, page 2, S"),
        ("a.pptx", None, 2, "a.pptx, slide 2, S"),
        ("a.XLSX", 7, None, "a.XLSX, row 7, S"),
        ("https://example.org/a.docx", 4, None, "https://example.org/a.docx, paragraph 4, S"),
    ],
)
def test_a_place_is_named_as_its_format_names_it(source: str, line: int | None, page: int | None, expected: str) -> None:
    assert place(source, "S", line=line, page=page) == expected
