"""An index in one portable file: out of one store, into another."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path

import pytest
from benchmarks.campaigns.hash_embedder import HashEmbedder

import tripod
from tests.retrieval.postgres_server import fresh_index
from tripod.documents import Passage, SourceState
from tripod.errors import StoreError
from tripod.retrieval.archive import export_archive, import_archive, read_header
from tripod.retrieval.index import Index
from tripod.retrieval.open_store import open_store

QUESTION = "owner of a mutex"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "lock.md").write_text("# Locks\n\nA mutex is freed by its owner.\n\n## More\n\nAnd once more.")
    (folder / "pool.html").write_text("<title>Pools</title><p>Blocks return to the pool.</p>")
    return folder


async def _export(docs: Path, location: str, archive: Path) -> tuple[list[Passage], Mapping[str, SourceState]]:
    async with Index(location, embedder=HashEmbedder()) as index:
        await index.sync(docs)
        assert await export_archive(index.store, archive) == 2
        return await index.search(QUESTION), await index.store.sources()


def test_an_index_moves_between_stores_and_stays_incremental(docs: Path, tmp_path: Path, postgres: str) -> None:
    archive = tmp_path / "kb.jsonl.gz"

    async def go() -> None:
        found, states = await _export(docs, str(tmp_path / "kb.db"), archive)
        header = read_header(archive)
        targets = [fresh_index(postgres), str(tmp_path / "copy.db")]
        for target in targets:
            async with aclosing(await open_store(target, pipeline=header.pipeline, embedder=header.embedder)) as store:
                assert await import_archive(archive, store) == 2
                assert await import_archive(archive, store) == 2  # twice is once
            async with Index(target, embedder=HashEmbedder()) as index:
                again = await index.search(QUESTION)
                assert [(p.id, p.text, p.line) for p in again] == [(p.id, p.text, p.line) for p in found]
                assert await index.store.sources() == states  # size and time too, by which the next sync knows what to read
                report = await index.sync(docs)
                assert (report.added, report.changed, report.unchanged) == (0, 0, 2)
                second = tmp_path / "second.gz"
                await export_archive(index.store, second)
                assert gzip.decompress(second.read_bytes()) == gzip.decompress(archive.read_bytes())

    tripod.run(go())


def test_a_file_that_is_no_archive_or_is_cut_short_is_named(docs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "kb.jsonl.gz"

    async def go() -> None:
        await _export(docs, ":memory:", archive)
        target = await open_store(":memory:", pipeline=read_header(archive).pipeline, embedder=read_header(archive).embedder)
        lines = gzip.decompress(archive.read_bytes()).splitlines(keepends=True)
        (tmp_path / "cut.gz").write_bytes(gzip.compress(b"".join(lines)[:-20]))
        with pytest.raises(StoreError, match="damaged after 1 sources"):
            await import_archive(tmp_path / "cut.gz", target)
        (tmp_path / "broken.gz").write_bytes(archive.read_bytes()[:-30])
        with pytest.raises(StoreError, match="damaged after"):
            await import_archive(tmp_path / "broken.gz", target)
        (tmp_path / "turned.gz").write_bytes(b"".join((archive.read_bytes()[:60], b"\xff" * 8, archive.read_bytes()[68:])))
        with pytest.raises(StoreError, match=r"no exported index|damaged after 0"):  # deflate's own error, which is no OSError
            await import_archive(tmp_path / "turned.gz", target)
        (tmp_path / "bare.gz").write_bytes(gzip.compress(b'{"tripod_index": 1}\n'))
        (tmp_path / "newer.gz").write_bytes(gzip.compress(b'{"tripod_index": 99}\n'))
        (tmp_path / "other.gz").write_bytes(gzip.compress(b"[1, 2]\n"))
        (tmp_path / "plain.gz").write_bytes(b"notes")
        for name, message in {
            "newer.gz": "format 99",
            "other.gz": "no exported index",
            "bare.gz": "no exported index",
            "plain.gz": "no exported",
            "no.gz": "no file",
        }.items():
            with pytest.raises(StoreError, match=message):
                read_header(tmp_path / name)

    tripod.run(go())
