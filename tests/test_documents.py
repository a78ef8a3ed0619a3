"""Documents hold offsets that point into their own text."""

from __future__ import annotations

import pytest

from tripod.documents import Document, Page, Section
from tripod.errors import ConfigError


def test_a_section_outside_the_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Section \[0, 12\) of 'a.md' lies outside its text of 11 characters"):
        Document(source="a.md", text="hello world", sections=(Section(0, 12),))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_metadata_that_json_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"metadata\['year'\]"):
        Document(source="a.md", text="x", metadata={"year": value})


def test_the_page_of_an_offset_is_the_last_one_that_starts_before_it() -> None:
    document = Document(source="a.pdf", text="one\ntwo\nthree", pages=(Page(1, 0, 4), Page(2, 4, 8), Page(3, 8, 13)))
    assert [document.page_at(offset) for offset in (0, 3, 4, 7, 8, 12)] == [1, 1, 2, 2, 3, 3]


def test_a_source_without_pages_has_no_page_numbers() -> None:
    assert Document(source="a.md", text="hello").page_at(2) is None
