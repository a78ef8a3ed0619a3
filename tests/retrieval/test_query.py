"""Questions to FTS5 expressions: nothing in a question is syntax."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tripod.errors import RequestError
from tripod.retrieval.fts5 import expression
from tripod.retrieval.query import MAX_TERMS, terms


def test_stop_words_are_left_out_and_each_word_is_asked_once() -> None:
    assert terms("What does the lock do, and who frees the lock?") == ["lock", "frees"]


def test_a_question_of_stop_words_keeps_them() -> None:
    assert terms("to be or not to be") == ["to", "be", "or", "not"]


@pytest.mark.parametrize("question", ["What does `with` do?", 'What does "with" do?', "What does “with” do?"])
def test_a_stop_word_that_is_mentioned_is_kept(question: str) -> None:
    assert terms(question) == ["with"]


@given(st.text())
@example('" OR section : *')
@example("NEAR(a b, 2) ^ - + { } a* \"b AND NOT c'; --")
@example("_ ___ \0 ﷺ İ ß 𝔘")
@example(" ".join(f"word{i}" for i in range(MAX_TERMS)))
def test_any_question_is_a_valid_expression_that_finds_its_own_words(question: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5 (section, text, tokenize = 'porter unicode61')")
    connection.execute("INSERT INTO words VALUES ('', 'a passage of other things'), ('', ?)", (" ".join(terms(question)),))
    if words := terms(question):
        found = connection.execute("SELECT rowid FROM words WHERE words MATCH ?", (expression(words),)).fetchall()
        assert len(found) <= 2
        if any(word.isascii() and word.isalnum() for word in words):
            assert (2,) in found
    connection.close()


def test_a_question_of_too_many_words_is_refused_with_the_number() -> None:
    with pytest.raises(RequestError, match="1001 different words"):
        terms(" ".join(f"word{i}" for i in range(MAX_TERMS + 1)))


@pytest.mark.timeout(20)  # minutes, if every mark is followed to the end
@pytest.mark.parametrize("mark", ['"', "`", "“", "”"])
def test_marks_without_end_take_no_time(mark: str) -> None:
    assert terms(f"red {mark * 300_000}") == ["red"]
