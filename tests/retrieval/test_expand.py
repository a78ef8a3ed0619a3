"""From passages to what stands around them. Law: a passage's text is its stretch of the document."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError
from tripod.retrieval.expand import joined, merged, with_context, with_parents
from tripod.text.splitter import split

TEXT = "One two three.\nFour five six.\nSeven eight nine.\n\nTen eleven twelve.\nThirteen."
DOCUMENT = Document(source="a", text=TEXT, sections=(Section(0, 47, "Low"), Section(49, len(TEXT), "High")))


class Shelf:
    """Documents by source."""

    def __init__(self, *documents: Document) -> None:
        self._documents = {document.source: document for document in documents}

    async def document(self, source: str) -> Document:
        return self._documents[source]


SHELF = Shelf(DOCUMENT)


def stretch(words: str, score: float | None = None) -> Passage:
    start = TEXT.index(words)
    return Passage(source="a", start=start, end=start + len(words), text=words, section="Low", line=DOCUMENT.line_at(start), score=score)


def texts(found: Coroutine[Any, Any, Sequence[Passage]]) -> list[str]:
    passages = asyncio.run(found)
    for passage in passages:
        assert TEXT[passage.start : passage.end] == passage.text
        assert passage.line == DOCUMENT.line_at(passage.start)
    return [passage.text for passage in passages]


def test_context_ends_at_whole_words_and_at_the_section() -> None:
    assert texts(with_context([stretch("Four five six.")], SHELF, characters=8)) == ["three.\nFour five six.\nSeven"]
    assert texts(with_context([stretch("Four five six.")], SHELF, characters=1000)) == [TEXT[:47]]
    assert texts(with_context([stretch("Four five six.")], SHELF, characters=0)) == ["Four five six."]
    with pytest.raises(ConfigError, match="characters=-1"):
        asyncio.run(with_context([], SHELF, characters=-1))


def test_neighbours_that_grow_together_become_one_at_the_better_place() -> None:
    found = [stretch("Ten eleven", 3.0), stretch("eight nine.", 2.0), stretch("One two", 1.0)]
    grown = asyncio.run(with_context(found, SHELF, characters=20))
    assert [passage.text for passage in grown] == ["Ten eleven twelve.\nThirteen.", TEXT[:47]]
    assert [passage.score for passage in grown] == [3.0, 2.0]


def test_a_passage_within_another_does_not_hide_how_far_that_one_reaches() -> None:
    inside = [stretch("One two three.\nFour five six.", 1.0), stretch("two"), stretch("five")]
    assert [(one.text, one.score) for one in joined(inside, {"a": DOCUMENT})] == [("One two three.\nFour five six.", 1.0)]


def test_a_parent_is_read_once() -> None:
    assert texts(with_parents([stretch("Four five six."), stretch("One two"), stretch("Thirteen")], SHELF)) == [TEXT[:47], TEXT[49:]]
    assert texts(with_parents([stretch("Four five six.")], SHELF, max_characters=30)) == ["three.\nFour five six.\nSeven"]


def test_a_section_takes_the_place_of_its_passages_where_most_of_it_was_found() -> None:
    found = [stretch("One two three."), stretch("Thirteen."), stretch("Four five six.")]
    assert texts(merged(found, SHELF, share=0.5)) == [TEXT[:47], "Thirteen."]
    assert texts(merged(found, SHELF, share=0.7)) == ["One two three.", "Thirteen.", "Four five six."]
    with pytest.raises(ConfigError, match="share=2"):
        asyncio.run(merged(found, SHELF, share=2))


@given(st.text(alphabet="ab \n.", min_size=1, max_size=200), st.data())
def test_joined_passages_cover_what_they_covered_and_no_longer_overlap(text: str, data: st.DataObject) -> None:
    document = Document(source="d", text=text)
    passages = split(document, max_tokens=4)
    chosen = data.draw(st.lists(st.sampled_from(passages), max_size=6)) if passages else []
    united = joined(chosen, {"d": document})
    covered = {place for one in chosen for place in range(one.start, one.end)}
    assert covered <= {place for one in united for place in range(one.start, one.end)}
    ends = sorted((one.start, one.end) for one in united)
    assert all(first[1] < second[0] for first, second in pairwise(ends))
    assert all(document.text[one.start : one.end] == one.text for one in united)
