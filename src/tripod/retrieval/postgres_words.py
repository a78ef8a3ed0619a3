"""BM25 in PostgreSQL: the full-text index says which passages hold a word, the positions in their tsvectors how often.

The words and the numbers are those of FTS5, so that an index gives the same scores in a file and on a server.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tripod.retrieval.cjk import asked, indexed
from tripod.retrieval.fts5 import K1, idf
from tripod.retrieval.query import words

if TYPE_CHECKING:
    from psycopg import Connection

_B = 0.75  # of FTS5's BM25
_WORD = re.compile(r"[^\W_]+")
_DIACRITIC = re.compile("[\u0300-\u036f]")
_SCORED = 2000  # passages whose words are counted at once; see `bm25`


def tokens(text: str) -> list[str]:
    """The words of a text as FTS5's unicode61 finds them: letters and digits, in lower case, without diacritics."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", _DIACRITIC.sub("", unicodedata.normalize("NFD", text)))
    return _WORD.findall(text.lower())


def indexed_tokens(section: str, text: str) -> list[str]:
    """All that a passage can be found by."""
    return [*tokens(section), *tokens(text), *tokens(indexed(f"{section}\n{text}"))]


@dataclass(frozen=True, slots=True)
class Query:
    """Terms, each a lexeme or several in a row, with what is known of them."""

    phrases: tuple[tuple[str, ...], ...]
    num_matches: tuple[int, ...]  # passages that hold the phrase
    num_passages: int
    mean_words: float  # of a passage

    @property
    def bound(self) -> float:
        """What BM25 would give to a passage that repeated every term without end."""
        return sum(self._idf(i) * (K1 + 1) for i in range(len(self.phrases)))

    def _idf(self, i: int) -> float:
        return idf(self.num_passages, self.num_matches[i])

    def score(self, num_words: int, positions: Mapping[str, Sequence[int]]) -> float:
        """BM25 of a passage with these positions of lexemes."""
        length = K1 * (1 - _B + _B * num_words / self.mean_words)
        score = 0.0
        for i, phrase in enumerate(self.phrases):
            if number := _occurrences(phrase, positions):
                score += self._idf(i) * number * (K1 + 1) / (number + length)
        return score


def prepare(connection: Connection, terms: Sequence[str]) -> Query:
    """What has to be known of terms before passages are scored."""
    lists = [tokens(term) for term in terms]
    stems = stem(connection, [token for found in lists for token in found])
    phrases = [tuple(stems[token] for token in found) for found in lists if found]
    [num_passages, num_words] = connection.execute("SELECT num_passages, num_words FROM totals").fetchone() or (0, 0)
    counts = count(connection, [_phrase(phrase) for phrase in phrases])
    missing = len(terms) - len(phrases)  # a term without a letter that is indexed stands nowhere
    return Query((*phrases, *[()] * missing), (*counts, *[0] * missing), num_passages, num_words / max(num_passages, 1) or 1.0)


def stem(connection: Connection, found: Sequence[str]) -> dict[str, str]:
    rows = connection.execute("SELECT token, (ts_lexize('porter', token))[1] FROM unnest(%s::text[]) AS token", (list(set(found)),))
    return {token: lexeme or token for token, lexeme in rows}


def count(connection: Connection, queries: Sequence[str]) -> list[int]:
    """How many passages satisfy each query."""
    sql = """SELECT (SELECT count(*) FROM passages WHERE words @@ query::tsquery)
        FROM unnest(%s::text[]) WITH ORDINALITY AS asked (query, place) ORDER BY place"""
    return [row[0] for row in connection.execute(sql, (list(queries),))]


def count_words(connection: Connection, wanted: Sequence[str]) -> list[int]:
    """For each word, or any of several in one text, the number of passages that hold it."""
    lists = [[[tokens(piece) for piece in asked(word)] for word in words(text)] for text in wanted]
    stems = stem(connection, [token for text in lists for word in text for piece in word for token in piece])
    queries = []
    for text in lists:
        each = [[_phrase([stems[token] for token in piece]) for piece in word if piece] for word in text]
        queries.append(" | ".join(f"({' & '.join(pieces)})" for pieces in each if pieces))
    counts = iter(count(connection, [query for query in queries if query]))
    return [next(counts) if query else 0 for query in queries]


def bm25(connection: Connection, query: Query, k: int, only: str, parameters: Sequence[Any]) -> dict[int, float]:
    """The scores of the k best passages among all that hold a term, and of some more.

    Every passage with one of the rarer terms is scored; those with none of them are left out where their best possible score
    is below that of the k-th. Only where that does not decide, or where the rarest term is more frequent than `_SCORED`, the
    passages to score are chosen by PostgreSQL's own rank, which may miss one of the k.
    """
    present = sorted((i for i in range(len(query.phrases)) if query.num_matches[i]), key=lambda i: query.num_matches[i])
    if not present:
        return {}
    chosen: list[int] = []
    total = 0
    for i in present:
        if chosen and total + query.num_matches[i] > _SCORED:
            break
        chosen.append(i)
        total += query.num_matches[i]
    rest = sum(query._idf(i) * (K1 + 1) for i in present[len(chosen) :])
    scores = _score_matches(connection, query, chosen, max(_SCORED, k), only, parameters)
    best = sorted(scores.values(), reverse=True)
    if rest and (len(best) < k or best[k - 1] < rest):
        scores |= _score_matches(connection, query, present, max(_SCORED, k), only, parameters)
    return scores


def score_passages(connection: Connection, query: Query, ids: Sequence[int]) -> dict[int, float]:
    """The scores of given passages."""
    lexemes = list({lexeme for phrase in query.phrases for lexeme in phrase})
    rows = connection.execute(
        """SELECT id, num_words, lexeme, positions FROM passages, unnest(words) AS entry (lexeme, positions, weights)
        WHERE id = ANY (%s) AND lexeme = ANY (%s)""",
        (list(ids), lexemes),
    )
    lengths: dict[int, int] = {}
    found: dict[int, dict[str, list[int]]] = defaultdict(dict)
    for passage_id, num_words, lexeme, positions in rows:
        lengths[passage_id] = num_words
        found[passage_id][lexeme] = positions
    return {passage_id: query.score(lengths[passage_id], positions) for passage_id, positions in found.items()}


def _score_matches(
    connection: Connection, query: Query, chosen: Sequence[int], limit: int, only: str, parameters: Sequence[Any]
) -> dict[int, float]:
    asked_for = " | ".join(_phrase(query.phrases[i]) for i in chosen)
    rows = connection.execute(
        f"""SELECT passages.id FROM passages JOIN sources ON sources.id = source_id WHERE words @@ %s::tsquery AND {only}
        ORDER BY ts_rank(words, %s::tsquery, 1) DESC LIMIT %s""",
        (asked_for, *parameters, asked_for, limit),
    )
    return score_passages(connection, query, [row[0] for row in rows])


def _phrase(lexemes: Sequence[str]) -> str:
    return " <-> ".join(f"'{lexeme}'" for lexeme in lexemes)  # of letters and digits, so no quotation mark can end one


def _occurrences(phrase: Sequence[str], positions: Mapping[str, Sequence[int]]) -> int:
    if not phrase or any(lexeme not in positions for lexeme in phrase):
        return 0
    places = set(positions[phrase[0]])
    for i, lexeme in enumerate(phrase[1:], start=1):
        places &= {position - i for position in positions[lexeme]}
    return len(places)
