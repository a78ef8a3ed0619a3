"""Sources and passages to rows of PostgreSQL, and back. Texts go through `without_nul`, which is undone when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tripod.documents import Document, Line, Page, Passage, Section, SourceState, StoredSource, StoreStats
from tripod.filters import Filter, instant
from tripod.retrieval import postgres_vector, postgres_words
from tripod.retrieval.postgres_where import condition, with_nul, without_nul
from tripod.retrieval.vector_format import FORMATS, VectorFormat

if TYPE_CHECKING:
    from psycopg import Connection

    from tripod.protocols import Vectors


def read_stats(connection: Connection, schema: str) -> StoreStats:
    made_by = meta(connection)
    [num_sources, num_unembedded] = one_row(connection, "SELECT count(*), count(*) FILTER (WHERE NOT is_embedded) FROM sources")
    [num_passages] = one_row(connection, "SELECT num_passages FROM totals")
    [num_vectors] = one_row(connection, "SELECT count(*) FROM passages JOIN sources ON sources.id = source_id WHERE is_embedded")
    [num_bytes] = one_row(
        connection,
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace",
        schema,
    )
    return StoreStats(
        num_sources=num_sources,
        num_passages=num_passages,
        num_vectors=num_vectors,
        num_unembedded=num_unembedded,
        num_bytes=num_bytes,
        dim=int(made_by.get("dim", 0)),
        vectors=made_by["vectors"],
        pipeline=made_by["pipeline"],
        embedder=made_by.get("embedder"),
        approximate="HNSW, by pgvector" if has_ann(connection) else None,
    )


def read_sources(connection: Connection, wanted: Filter) -> dict[str, SourceState]:
    where, parameters = condition(wanted)
    rows = connection.execute(
        f"SELECT source, digest, root, size, mtime_ns, is_embedded FROM sources WHERE {where} ORDER BY source",
        parameters,
    )
    return {with_nul(row[0]): _state(*row[1:]) for row in rows}


def read_document(connection: Connection, source: str) -> tuple[int, Document] | None:
    row = connection.execute("SELECT id, title, text, spans, metadata FROM sources WHERE source = %s", (without_nul(source),)).fetchone()
    if row is None:
        return None
    source_id, title, text, spans, metadata = row
    kinds = json.loads(spans)
    return source_id, Document(
        source=source,
        text=with_nul(text),
        title=with_nul(title),
        sections=tuple(Section(*span) for span in kinds["sections"]),
        pages=tuple(Page(*span) for span in kinds["pages"]),
        lines=tuple(Line(*span) for span in kinds["lines"]),
        metadata=json.loads(metadata),
    )


def read_source(connection: Connection, source: str) -> StoredSource | None:
    found = read_document(connection, source)
    if found is None:
        return None
    source_id, document = found
    made_by = meta(connection)
    state = one_row(connection, "SELECT digest, root, size, mtime_ns, is_embedded FROM sources WHERE id = %s", source_id)
    column = "NULL"
    if "dim" in made_by:
        postgres_vector.register(connection, vectors_of(made_by))
        column = "vector"
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(
            f"SELECT start_at, end_at, section, text, page, line, {column} FROM passages WHERE source_id = %s "
            "ORDER BY start_at, end_at, id",
            (source_id,),
        ).fetchall()
    vectors = [row[6] for row in rows if row[6] is not None]
    return StoredSource(
        document=document,
        passages=tuple(_passage(source, document.metadata, *row[:6]) for row in rows),
        vectors=np.array(vectors, dtype=np.float32) if vectors else None,
        state=_state(*state),
    )


def read_passages(connection: Connection, found: Mapping[int, float]) -> list[Passage]:
    """The passages of these ids, in this order, with these scores."""
    rows = connection.execute(
        "SELECT passages.id, source, metadata, start_at, end_at, section, passages.text, page, line FROM passages "
        "JOIN sources ON sources.id = source_id WHERE passages.id = ANY (%s)",
        (list(found),),
    ).fetchall()
    by_id = {row[0]: row[1:] for row in rows}
    passages = []
    for passage_id, score in found.items():
        source, metadata, start, end, section, text, page, line = by_id[passage_id]
        passages.append(_passage(with_nul(source), json.loads(metadata), start, end, section, text, page, line, score))
    return passages


def insert_source(
    connection: Connection, document: Document, passages: Sequence[Passage], vectors: Vectors | None, state: SourceState
) -> None:
    """In the transaction of the caller, which removed what was there of the source before; `register` was called for vectors."""
    spans = {kind: [list(asdict(span).values()) for span in getattr(document, kind)] for kind in ("sections", "pages", "lines")}
    times = {name: instant(value) for name, value in {**document.metadata, "source": document.source}.items()}
    [source_id] = one_row(
        connection,
        "INSERT INTO sources (source, digest, root, size, mtime_ns, is_embedded, title, text, spans, metadata, fields, instants) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id",
        without_nul(document.source),
        state.digest,
        without_nul(state.root),
        state.size,
        state.mtime_ns,
        vectors is not None,
        without_nul(document.title),
        without_nul(document.text),
        json.dumps(spans),
        json.dumps(dict(document.metadata)),
        json.dumps({_whole(name): _whole(value) if isinstance(value, str) else value for name, value in document.metadata.items()}),
        json.dumps({_whole(name): time for name, time in times.items() if time is not None}),
    )
    columns = "source_id, start_at, end_at, section, text, page, line, num_words, words"
    values = "%s, %s, %s, %s, %s, %s, %s, %s, to_tsvector('words', %s)"
    rows = []
    num_words = 0
    for i, passage in enumerate(passages):
        found = postgres_words.indexed_tokens(passage.section, passage.text)
        num_words += len(found)
        row = [
            source_id,
            passage.start,
            passage.end,
            without_nul(passage.section),
            without_nul(passage.text),
            passage.page,
            passage.line,
        ]
        rows.append([*row, len(found), " ".join(found), *([] if vectors is None else [vectors[i]])])
    if vectors is not None:
        columns, values = f"{columns}, vector", f"{values}, %s"
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO passages ({columns}) VALUES ({values})", rows)
    connection.execute("UPDATE totals SET num_passages = num_passages + %s, num_words = num_words + %s", (len(rows), num_words))


def delete_source(connection: Connection, source: str) -> None:
    connection.execute(
        """WITH gone AS (
            SELECT count(*) AS passages, coalesce(sum(num_words), 0) AS words FROM passages
            WHERE source_id = (SELECT id FROM sources WHERE source = %s))
        UPDATE totals SET num_passages = totals.num_passages - gone.passages, num_words = totals.num_words - gone.words FROM gone""",
        (without_nul(source),),
    )
    connection.execute("DELETE FROM sources WHERE source = %s", (without_nul(source),))


def has_tables(connection: Connection, schema: str) -> bool:
    return bool(one_row(connection, "SELECT to_regclass(%s) IS NOT NULL", f"{schema}.meta")[0])


def has_ann(connection: Connection) -> bool:
    return bool(one_row(connection, "SELECT to_regclass('passages_vector') IS NOT NULL")[0])


def meta(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM meta").fetchall())


def set_meta(connection: Connection, **values: str) -> None:
    for item in values.items():
        connection.execute("INSERT INTO meta VALUES (%s, %s)", item)


def one_row(connection: Connection, sql: str, *parameters: object) -> Any:
    row = connection.execute(sql, parameters).fetchone()
    assert row is not None
    return row


def vectors_of(made_by: Mapping[str, str]) -> VectorFormat:
    [form] = [form for form in FORMATS if form == made_by["vectors"]]
    return form


def _state(digest: str, root: str, size: int, mtime_ns: int, is_embedded: bool) -> SourceState:
    return SourceState(digest=digest, root=with_nul(root), size=size, mtime_ns=mtime_ns, is_embedded=is_embedded)


def _passage(
    source: str,
    metadata: Mapping[str, Any],
    start: int,
    end: int,
    section: str,
    text: str,
    page: int | None,
    line: int | None,
    score: float | None = None,
) -> Passage:
    return Passage(
        source=source,
        start=start,
        end=end,
        text=with_nul(text),
        section=with_nul(section),
        page=page,
        line=line,
        metadata=metadata,
        score=score,
    )


def _whole(text: str) -> str:
    """A text that jsonb takes: no NUL, and no half of a surrogate pair, which no filter can ask for."""
    return without_nul(text.encode(errors="replace").decode())
