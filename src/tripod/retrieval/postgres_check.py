"""What can be wrong with an index in PostgreSQL, and what of it can be made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tripod.retrieval import postgres_words
from tripod.retrieval.postgres_rows import meta
from tripod.retrieval.postgres_where import with_nul

if TYPE_CHECKING:
    from psycopg import Connection

# What must not be found in an index -> where it is found.
_INCONSISTENCIES = {
    "passages that are not what their text says, in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id
        WHERE strpos(sources.text, U&'\\FDD0') = 0 AND passages.text != substr(sources.text, start_at + 1, end_at - start_at)""",
    "passages without words, which no search by words finds, in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE num_words > 0 AND words = ''""",
    "the totals differ from the passages by": """
        SELECT totals.num_passages - count(*) FROM passages, totals GROUP BY totals.num_passages, totals.num_words
        HAVING count(*) != totals.num_passages OR sum(passages.num_words) != totals.num_words""",
}


def find_damage(connection: Connection) -> list[str]:
    """What is wrong, a sentence each."""
    found = []
    for what, sql in _INCONSISTENCIES.items():
        found += [f"{what}: {row[0]}" for row in connection.execute(sql)]
    if "dim" in meta(connection):
        sql = "SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE is_embedded != (vector IS NOT NULL)"
        found += [f"passages without a vector in a source that has vectors: {row[0]}" for row in connection.execute(sql)]
    return found


def make_words_anew(connection: Connection) -> None:
    """Words and totals are made anew from the texts."""
    rows = []
    for passage_id, section, text in connection.execute("SELECT id, section, text FROM passages"):
        found = postgres_words.indexed_tokens(with_nul(section), with_nul(text))
        rows.append((len(found), " ".join(found), passage_id))
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE passages SET num_words = %s, words = to_tsvector('words', %s) WHERE id = %s", rows)
    connection.execute("DELETE FROM totals")
    connection.execute("INSERT INTO totals SELECT count(*), coalesce(sum(num_words), 0) FROM passages")
