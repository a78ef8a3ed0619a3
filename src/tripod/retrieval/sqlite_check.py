"""What can be wrong with an index in SQLite."""

from __future__ import annotations

import sqlite3

# What must not be found in an index -> where it is found.
_INCONSISTENCIES = {
    "passages without words, which no search by words finds, in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id
        WHERE passages.id NOT IN (SELECT id FROM words_docsize)""",
    "words of no passage, by id": "SELECT id FROM words_docsize WHERE id NOT IN (SELECT id FROM passages) LIMIT 10",
    "passages outside of their text in": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE NOT 0 <= start OR start > end
        OR end > length(text) AND instr(text, char(0)) = 0""",
    "passages without a vector in a source that has vectors": """
        SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE is_embedded != (vector IS NOT NULL)""",
}


def find_damage(reader: sqlite3.Connection) -> list[str]:
    """What is wrong, a sentence each."""
    found = [f"SQLite: {row[0]}" for row in reader.execute("PRAGMA integrity_check") if row[0] != "ok"]
    found += [f"a passage of no source: {row[1]} of {row[0]}" for row in reader.execute("PRAGMA foreign_key_check")]
    for what, sql in _INCONSISTENCIES.items():
        found += [f"{what}: {row[0]}" for row in reader.execute(sql)]
    lengths = "SELECT length(vector) FROM passages WHERE vector IS NOT NULL GROUP BY length(vector) ORDER BY count(*) DESC LIMIT 1"
    others = f"SELECT DISTINCT source FROM passages JOIN sources ON sources.id = source_id WHERE length(vector) != ({lengths})"
    found += [f"vectors of another length than most: {row[0]}" for row in reader.execute(others)]
    return found
