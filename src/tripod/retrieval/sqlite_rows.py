"""Sources and passages to rows of SQLite, and back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from tripod.documents import Document, Line, Page, Passage, Section, SourceState, StoredSource, StoreStats
from tripod.filters import Filter
from tripod.retrieval import fts5
from tripod.retrieval.sqlite_file import meta, vectors_of
from tripod.retrieval.sqlite_where import condition
from tripod.retrieval.vector_format import decode, dim_of, encode

if TYPE_CHECKING:
    from tripod.protocols import Vectors


def read_stats(reader: sqlite3.Connection, num_bytes: int, approximate: str | None) -> StoreStats:
    """All that can be told of an index."""
    made_by = meta(reader)
    num_sources, num_unembedded = reader.execute("SELECT count(*), coalesce(sum(NOT is_embedded), 0) FROM sources").fetchone()
    [num_passages] = reader.execute("SELECT count(*) FROM passages").fetchone()
    [num_vectors] = reader.execute("SELECT count(*) FROM passages WHERE source_id IN (SELECT id FROM sources WHERE is_embedded)").fetchone()
    form = vectors_of(made_by)
    one = reader.execute("SELECT length(vector) FROM passages WHERE vector IS NOT NULL LIMIT 1").fetchone()
    return StoreStats(
        num_sources=num_sources,
        num_passages=num_passages,
        num_vectors=num_vectors,
        num_unembedded=num_unembedded,
        num_bytes=num_bytes,
        dim=dim_of(one[0], form) if one else 0,
        vectors=form,
        pipeline=made_by["pipeline"],
        embedder=made_by.get("embedder"),
        approximate=approximate,
    )


def read_sources(reader: sqlite3.Connection, wanted: Filter) -> dict[str, SourceState]:
    sql, parameters = condition(wanted)
    rows = reader.execute(f"SELECT source, digest, root, size, mtime_ns, is_embedded FROM sources WHERE {sql} ORDER BY source", parameters)
    return {row[0]: _state(*row[1:]) for row in rows}


def read_document(reader: sqlite3.Connection, source: str) -> tuple[int, Document] | None:
    row = reader.execute("SELECT id, title, text, spans, metadata FROM sources WHERE source = ?", (source,)).fetchone()
    if row is None:
        return None
    source_id, title, text, spans, metadata = row
    kinds = json.loads(spans)
    return source_id, Document(
        source=source,
        text=text,
        title=title,
        sections=tuple(Section(*span) for span in kinds["sections"]),
        pages=tuple(Page(*span) for span in kinds["pages"]),
        lines=tuple(Line(*span) for span in kinds["lines"]),
        metadata=json.loads(metadata),
    )


def read_source(reader: sqlite3.Connection, source: str) -> StoredSource | None:
    found = read_document(reader, source)
    if found is None:
        return None
    source_id, document = found
    state = reader.execute("SELECT digest, root, size, mtime_ns, is_embedded FROM sources WHERE id = ?", (source_id,)).fetchone()
    rows = reader.execute(
        "SELECT start, end, section, page, line, vector FROM passages WHERE source_id = ? ORDER BY start, end, id", (source_id,)
    ).fetchall()
    form = vectors_of(meta(reader))
    vectors = [decode(row[5], form) for row in rows if row[5] is not None]
    return StoredSource(
        document=document,
        passages=tuple(document.passage(start, end, section=section, page=page, line=line) for start, end, section, page, line, _ in rows),
        vectors=np.array(vectors, dtype=np.float32).reshape(len(rows), -1) if rows and vectors else None,
        state=_state(*state),
    )


def read_passage(reader: sqlite3.Connection, passage_id: int, score: float) -> Passage:
    source, start, end, text, section, page, line, metadata = reader.execute(
        "SELECT source, start, end, words.text, passages.section, page, line, metadata FROM passages "
        "JOIN sources ON sources.id = source_id JOIN words ON words.rowid = passages.id WHERE passages.id = ?",
        (passage_id,),
    ).fetchone()
    return Passage(
        source=source,
        start=start,
        end=end,
        text=text,
        section=section,
        page=page,
        line=line,
        metadata=json.loads(metadata),
        score=score,
    )


def insert_source(
    writer: sqlite3.Connection, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState
) -> None:
    """In the transaction of the caller, which removed what was there of the source before."""
    spans = {kind: [list(asdict(span).values()) for span in getattr(document, kind)] for kind in ("sections", "pages", "lines")}
    form = vectors_of(meta(writer))
    source_id = writer.execute(
        "INSERT INTO sources (source, digest, root, size, mtime_ns, is_embedded, title, text, spans, metadata) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            document.source,
            state.digest,
            state.root,
            state.size,
            state.mtime_ns,
            vectors is not None,
            document.title,
            document.text,
            json.dumps(spans),
            json.dumps(dict(document.metadata)),
        ),
    ).lastrowid
    for i, passage in enumerate(passages):
        vector = None if vectors is None else encode(vectors[i], form)
        passage_id = writer.execute(
            "INSERT INTO passages (source_id, start, end, section, page, line, vector) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (source_id, passage.start, passage.end, passage.section, passage.page, passage.line, vector),
        ).lastrowid
        assert passage_id is not None
        fts5.add_words(writer, passage_id, passage.section, passage.text)


def _state(digest: str, root: str, size: int, mtime_ns: int, is_embedded: int) -> SourceState:
    return SourceState(digest=digest, root=root, size=size, mtime_ns=mtime_ns, is_embedded=bool(is_embedded))
