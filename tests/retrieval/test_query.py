"""Questions to FTS5 expressions: nothing in a question is syntax."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tripod.errors import RequestError
from tripod.retrieval import fts5
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


@given(st.integers(0, 2**32), st.integers(1, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_best_matches_are_those_of_all_matches(seed: int, number: int, is_filtered: bool) -> None:
    generator = random.Random(seed)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(fts5.SCHEMA)
        for i in range(200):
            held = [f"w{min(int(generator.paretovariate(0.6)), 300)}" for _ in range(generator.randint(1, 20))]
            fts5.add_words(connection, i, "", " ".join(held))
        asked = [f"w{i}" for i in (1, *generator.sample(range(2, 40), 4))]
        among = "SELECT value FROM json_each('[1, 3, 5, 7, 9, 11, 13, 15, 17]')" if is_filtered else ""
        scores = dict(zip(*(values.tolist() for values in fts5.matches(connection, asked)), strict=True))
        allowed = [score for i, score in scores.items() if not is_filtered or i in range(1, 18, 2)]
        found = fts5.best_matches(connection, fts5.counts_of(connection, asked), number, 200, among)
        assert list(found.values()) == pytest.approx(sorted(allowed, reverse=True)[:number], abs=1e-5)
        assert found == pytest.approx({i: scores[i] for i in found}, abs=1e-5)
