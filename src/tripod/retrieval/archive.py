"""An index in one portable file: to move it between stores, to keep it, or to read it with other tools.

The file is gzip of JSON lines. The first names the format and who made the index; each further line is one source with its passages, its
vectors (base64 of float32, little-endian) and what a sync remembers of it. So an index that was moved is still incremental.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import anyio.to_thread
import numpy as np

from tripod.documents import Document, Line, Page, Section, SourceState, StoredSource, StoreStats
from tripod.durable_files import durable_file
from tripod.errors import StoreError
from tripod.protocols import Store

_FORMAT = 1
_LEVEL = 6  # of gzip
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError)  # what reading a damaged file raises


async def export_archive(store: Store, path: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write all of a store into a file, which appears when it is whole.

    Args:
        store: is read a source at a time: what is replaced meanwhile is written as it was or as it is.
        path: the file; one of this name is replaced.
        progress: called with the number of sources done and of all.

    Returns:
        The number of sources.

    Raises:
        StoreError: there is no index in the store.
    """
    stats = await store.stats()
    if stats is None:
        raise StoreError("there is no index to export")
    names = list(await store.sources())
    with durable_file(path) as stream, gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=_LEVEL, mtime=0) as archive:
        _write_line(archive, {"tripod_index": _FORMAT, "pipeline": stats.pipeline, "embedder": stats.embedder, "vectors": stats.vectors})
        num_sources = 0
        for done, name in enumerate(names, start=1):
            stored = await store.read(name)
            if stored is not None:
                await anyio.to_thread.run_sync(_write_line, archive, _as_json(stored))
                num_sources += 1
            progress(done, len(names))
    return num_sources


def read_header(path: Path) -> StoreStats:
    """Who made the index in a file; its numbers are not known before it was read.

    Raises:
        StoreError: the file is no such archive, or one of a newer version.
    """
    try:
        with gzip.open(path) as archive:
            header = json.loads(archive.readline())
        version = header["tripod_index"]
        makers = {name: header[name] for name in ("vectors", "pipeline", "embedder")} if version == _FORMAT else {}
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except _DAMAGE as error:
        raise StoreError(f"{path} is no exported index: {error}; make one with `tripod kb export`") from None
    if version != _FORMAT:
        raise StoreError(f"{path} has format {version}, and this Tripod reads {_FORMAT}; upgrade it")
    return StoreStats(
        num_sources=0,
        num_passages=0,
        num_vectors=0,
        num_unembedded=0,
        num_bytes=path.stat().st_size,
        dim=0,
        **makers,
    )


async def import_archive(path: Path, store: Store, *, progress: Callable[[int], None] = lambda done: None) -> int:
    """Put all sources of a file into a store, each replacing one of its name. Done again after an interruption, it completes itself.

    Args:
        path: see `export_archive`.
        store: was opened for the makers that `read_header` names.
        progress: called with the number of sources done.

    Returns:
        The number of sources.

    Raises:
        StoreError: the file is damaged, or the store was made by others.
    """
    read_header(path)
    num_sources = 0
    with gzip.open(path) as archive:
        archive.readline()
        while True:
            try:
                line = await anyio.to_thread.run_sync(archive.readline)
                stored = _from_json(json.loads(line)) if line else None
            except _DAMAGE as error:
                raise StoreError(f"{path} is damaged after {num_sources} sources: {error}; those are imported") from None
            if stored is None:
                break
            await store.replace(stored.document, stored.passages, stored.vectors, stored.state)
            num_sources += 1
            progress(num_sources)
    await store.settle()
    return num_sources


def _write_line(archive: IO[bytes] | gzip.GzipFile, value: Mapping[str, Any]) -> None:
    archive.write(json.dumps(value).encode() + b"\n")


def _as_json(stored: StoredSource) -> dict[str, Any]:
    document, vectors = stored.document, stored.vectors
    return {
        "source": document.source,
        "title": document.title,
        "text": document.text,
        "metadata": dict(document.metadata),
        "sections": [[section.start, section.end, section.title] for section in document.sections],
        "pages": [[page.number, page.start, page.end] for page in document.pages],
        "lines": [[line.start, line.number] for line in document.lines],
        "passages": [[passage.start, passage.end, passage.section, passage.page, passage.line] for passage in stored.passages],
        "vectors": None if vectors is None else base64.b64encode(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).decode(),
        "state": asdict(stored.state),
    }


def _from_json(value: Mapping[str, Any]) -> StoredSource:
    document = Document(
        source=value["source"],
        text=value["text"],
        title=value["title"],
        sections=tuple(Section(*span) for span in value["sections"]),
        pages=tuple(Page(*span) for span in value["pages"]),
        lines=tuple(Line(*span) for span in value["lines"]),
        metadata=value["metadata"],
    )
    passages = tuple(
        document.passage(start, end, section=section, page=page, line=line) for start, end, section, page, line in value["passages"]
    )
    vectors = None
    if value["vectors"] is not None:
        content = np.frombuffer(base64.b64decode(value["vectors"]), dtype="<f4")
        vectors = content.reshape(len(passages), -1) if passages else np.zeros((0, 0), dtype=np.float32)
    return StoredSource(document=document, passages=passages, vectors=vectors, state=SourceState(**value["state"]))
