"""Words in a SQLite database: FTS5 with the Porter stemmer, its BM25, and what BM25 could be at most."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from tripod.retrieval.cjk import asked, indexed
from tripod.retrieval.query import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tripod.protocols import Vectors

_SCORED_SHARE = 0.05  # of all passages: as many are scored at first
K1 = 1.2  # of FTS5's BM25, which has no setting for it
# rowid: the passage's id. The third column is empty but for scripts without spaces; an empty column changes no score.
SCHEMA = "CREATE VIRTUAL TABLE words USING fts5 (section, text, cjk, tokenize = 'porter unicode61');"


def add_words(connection: sqlite3.Connection, passage_id: int, section: str, text: str) -> None:
    connection.execute(
        "INSERT INTO words (rowid, section, text, cjk) VALUES (?, ?, ?, ?)", (passage_id, section, text, indexed(f"{section}\n{text}"))
    )


def matches(connection: sqlite3.Connection, terms: Sequence[str]) -> tuple[NDArray[np.int64], Vectors]:
    """The ids of all passages that hold any of the terms, and their BM25 scores."""
    # FTS5 gives smaller-is-better; all matches are fetched because fusion needs the score of every passage.
    found = connection.execute("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (expression(terms),)).fetchall()
    return np.array([row[0] for row in found], dtype=np.int64), np.array([row[1] for row in found], dtype=np.float32)


def best_matches(
    connection: sqlite3.Connection,
    counts: Mapping[str, int],
    number: int,
    num_passages: int,
    among: str = "",
    parameters: Sequence[object] = (),
) -> dict[int, float]:
    """The ids and scores of so many best matches; of all, or among the ids that a query gives.

    A passage with none of the rarer terms is not scored where even all of the frequent ones, repeated without end, would not bring it
    among the best: scoring is what takes time.

    Args:
        counts: of each term the number of passages that hold it.
    """
    terms = list(counts)
    by_rarity = sorted(terms, key=lambda term: counts[term])
    totals = list(accumulate(counts[term] for term in by_rarity))
    num_rare = max(1, sum(total <= _SCORED_SHARE * num_passages for total in totals))
    rare, frequent = by_rarity[:num_rare], by_rarity[num_rare:]
    if frequent:
        holds_rare = f"SELECT rowid FROM words WHERE words MATCH ? {among and f'AND +rowid IN ({among})'}"
        found = _best(connection, terms, number, holds_rare, (expression(rare), *parameters))
        if len(found) == number and min(found.values()) >= bound((counts[term] for term in frequent), num_passages):
            return found
    return _best(connection, terms, number, among, parameters)


def _best(connection: sqlite3.Connection, terms: Sequence[str], number: int, among: str, parameters: Sequence[object]) -> dict[int, float]:
    # The plus keeps SQLite from looking each of the ids up in turn, which asks for the words anew as often as there are passages.
    rows = connection.execute(
        f"SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? {among and f'AND +rowid IN ({among})'} "
        "ORDER BY score DESC LIMIT ?",
        (expression(terms), *parameters, number),
    )
    return dict(rows.fetchall())


def scores_of(connection: sqlite3.Connection, terms: Sequence[str], ids: Sequence[int]) -> dict[int, float]:
    """The scores of those among the ids that match."""
    rows = connection.execute(
        "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? AND +rowid IN (SELECT value FROM json_each(?))",
        (expression(terms), json.dumps(list(ids))),
    )
    return dict(rows.fetchall())


def num_matches(connection: sqlite3.Connection, word: str) -> int:
    """How many passages hold a word, or any of several; a run of characters counts where all its pairs stand."""
    wanted = words(word)
    if not wanted:
        return 0
    [number] = connection.execute("SELECT count(*) FROM words WHERE words MATCH ?", (expression(wanted),)).fetchone()
    return int(number)


def counts_of(connection: sqlite3.Connection, terms: Sequence[str]) -> dict[str, int]:
    """For each term of a question the number of passages that hold it."""
    sql = "SELECT count(*) FROM words WHERE words MATCH ?"
    return {term: connection.execute(sql, (expression([term]),)).fetchone()[0] for term in terms}


def bound(counts: Iterable[int], num_passages: int) -> float:
    """What BM25 would give to a passage that repeated every term without end, of terms that so many passages hold."""
    return sum((K1 + 1) * idf(num_passages, number) for number in counts)


def idf(num_passages: int, num_matches: int) -> float:
    """FTS5's, which is never below this small number. A word that stands nowhere counts too: it was asked for."""
    return max(math.log((num_passages - num_matches + 0.5) / (num_matches + 0.5)), 1e-6)


def expression(wanted: Sequence[str]) -> str:
    """The FTS5 expression that any of the words satisfies, quoted; \\w holds no quotation mark, so none can end the string."""
    return " OR ".join(
        f"({' AND '.join(quoted)})" if len(quoted := [f'"{piece}"' for piece in asked(word)]) > 1 else quoted[0] for word in wanted
    )
