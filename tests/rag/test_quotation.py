"""Quotations are found whatever their layout, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.rag.quotation import find_quotation


@pytest.mark.parametrize(
    ("quotation", "text", "quoted"),
    [
        ("a lock is held", "Then a lock\n   is held.", "a lock\n   is held"),
        ("the with statement", "Use the ``with`` statement.", "the ``with`` statement"),
        ("don't go", "Please don\u2019t go.", "don\u2019t go"),
        ("a non-virtual base", "It is a *non-\nvirtual base* class.", "a *non-\nvirtual base"),
        ("A lock is held,", "Here a lock is held.", "a lock is held"),
        ("2019-2020 was", "In 2019\u20132020 was it.", "2019\u20132020 was"),
        ("A lock \u2026 by nobody", "A lock is never held by nobody.", "A lock is never held by nobody"),
        ("A lock [...] by nobody", "A lock is never held by nobody.", "A lock is never held by nobody"),
        ("x = ... # later", "Write x = ... # later", "x = ... # later"),
    ],
)
def test_layout_does_not_matter(quotation: str, text: str, quoted: str) -> None:
    span = find_quotation(quotation, text)
    assert span is not None
    assert text[slice(*span)] == quoted


@pytest.mark.parametrize(
    ("quotation", "text"),
    [
        ("a lock is freed", "a lock is held"),
        ("lock is held", "a block is held"),
        ("a lock is", "a lock isolates"),
        ("by nobody \u2026 a lock", "A lock is held by nobody."),
        ("a \u2026 b", "a lock b"),
        ("", "a lock"),
        ("\u201d", "a lock"),
        ("a lock", ""),
        ("together", "to gether"),
    ],
)
def test_other_words_are_not_found(quotation: str, text: str) -> None:
    assert find_quotation(quotation, text) is None


@given(st.text(alphabet=st.sampled_from("ab-\n ."), max_size=60), st.data())
def test_any_run_of_whole_words_is_found_where_its_words_are(text: str, data: st.DataObject) -> None:
    words = text.split()
    if not words:
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    quotation = " ".join(words[first : last + 1])
    span = find_quotation(quotation, text)
    if not any(character.isalnum() for character in quotation):
        return
    assert span is not None
    assert "".join(text[slice(*span)].split()).strip(".").casefold() == "".join(quotation.split()).strip(".").casefold()
