"""The tables of an index in SQLite, and what makes an index of an earlier version one of this version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from tripod.retrieval import fts5

APPLICATION_ID = 0x54526950  # "TRiP", in the file's header: this database is an index of Tripod's
VERSION = 2

# Which sources came and went, in order, so that a reader loads what changed and not everything. A source that is replaced gets a new id.
_CHANGES = """
CREATE TABLE changes (number INTEGER PRIMARY KEY AUTOINCREMENT, source_id INTEGER NOT NULL);
CREATE TRIGGER note_addition AFTER INSERT ON sources BEGIN INSERT INTO changes (source_id) VALUES (new.id); END;
CREATE TRIGGER note_removal AFTER DELETE ON sources BEGIN INSERT INTO changes (source_id) VALUES (old.id); END;
"""
KEPT_CHANGES = 20_000  # of the last; who has seen none of them loads everything

_FORGET_WORDS = "CREATE TRIGGER forget_words AFTER DELETE ON passages BEGIN DELETE FROM words WHERE rowid = old.id; END;"

_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    root TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    is_embedded INTEGER NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    spans TEXT NOT NULL,     -- JSON: sections, pages and lines
    metadata TEXT NOT NULL   -- JSON
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY,
    source_id INTEGER NOT NULL REFERENCES sources (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    section TEXT NOT NULL,
    page INTEGER,
    line INTEGER,
    vector BLOB              -- in the format that meta names
);
CREATE INDEX passages_of_source ON passages (source_id);
{fts5.SCHEMA}
{_FORGET_WORDS}
{_CHANGES}
"""


def create(writer: sqlite3.Connection, pipeline: str, vectors: str) -> None:
    """Make the tables, in the transaction of the caller."""
    _run(writer, _SCHEMA)
    writer.executemany("INSERT INTO meta VALUES (?, ?)", [("pipeline", pipeline), ("vectors", vectors)])
    _mark(writer)


def migrate(writer: sqlite3.Connection, version: int) -> None:
    """Bring an index of an earlier version to this one, in the transaction of the caller."""
    if version < 2:  # 2: pieces of Chinese, Japanese and Korean words; smaller vectors; the list of changes
        rebuild_words(writer)
        _run(writer, _CHANGES)
        writer.execute("INSERT INTO meta VALUES ('vectors', 'f32')")
    _mark(writer)


def rebuild_words(writer: sqlite3.Connection) -> None:
    """Make the words of all passages anew, from the texts of their sources."""
    writer.execute("DROP TRIGGER IF EXISTS forget_words")
    writer.execute("DROP TABLE IF EXISTS words")
    _run(writer, fts5.SCHEMA)
    for source_id, text in writer.execute("SELECT id, text FROM sources"):
        passages = writer.execute("SELECT id, start, end, section FROM passages WHERE source_id = ?", (source_id,))
        for passage_id, start, end, section in passages:
            fts5.add_words(writer, passage_id, section, text[start:end])
    _run(writer, _FORGET_WORDS)


def _mark(writer: sqlite3.Connection) -> None:
    writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    writer.execute(f"PRAGMA user_version = {VERSION}")


def _run(writer: sqlite3.Connection, script: str) -> None:
    for statement in _statements(script):
        writer.execute(statement)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit the transaction that they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
