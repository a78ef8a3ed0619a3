"""The tables of an index in a schema of PostgreSQL, made and migrated step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg import Connection

# Step n brings an index of version n to version n + 1. A step that was released is never changed.
_STEPS = (
    """
    CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL);
    CREATE TABLE sources (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        source text COLLATE "C" NOT NULL UNIQUE,
        digest text NOT NULL,
        root text NOT NULL,
        size bigint NOT NULL,
        mtime_ns bigint NOT NULL,
        is_embedded boolean NOT NULL,
        title text NOT NULL,
        text text NOT NULL,
        spans text NOT NULL,      -- JSON: sections, pages and lines
        metadata text NOT NULL,   -- JSON, as it was given
        fields jsonb NOT NULL,    -- the same, to filter by
        instants jsonb NOT NULL   -- its times, in microseconds since 1970
    );
    CREATE INDEX sources_fields ON sources USING gin (fields);
    CREATE TABLE passages (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        source_id bigint NOT NULL REFERENCES sources ON DELETE CASCADE,
        start_at integer NOT NULL,
        end_at integer NOT NULL,
        section text NOT NULL,
        text text NOT NULL,
        page integer,
        line integer,
        num_words integer NOT NULL,
        words tsvector NOT NULL   -- the column `vector` comes with the first vectors, which say how long it is
    );
    CREATE INDEX passages_source ON passages (source_id);
    CREATE INDEX passages_words ON passages USING gin (words);
    CREATE TABLE totals (num_passages bigint NOT NULL, num_words bigint NOT NULL);
    INSERT INTO totals VALUES (0, 0);
    -- Words reach the parser as letters and digits between spaces; the stemmer is that of FTS5.
    CREATE TEXT SEARCH DICTIONARY porter (TEMPLATE = snowball, Language = porter);
    CREATE TEXT SEARCH CONFIGURATION words (PARSER = default);
    ALTER TEXT SEARCH CONFIGURATION words ADD MAPPING FOR asciiword, word, numword, int, uint, float, sfloat, version WITH porter;
    """,
)
VERSION = len(_STEPS)


def migrate(connection: Connection, schema: str, version: int) -> None:
    """Bring a schema from a version, 0 being none at all, to this one, in the transaction of the caller."""
    from psycopg import sql

    if version == 0:
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    for step in _STEPS[version:]:
        connection.execute(step)
    connection.execute("INSERT INTO meta VALUES ('version', %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (str(VERSION),))
