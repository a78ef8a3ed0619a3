"""Syncing files, documents and iterables: each origin is mirrored, and none touches the sources of another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tripod
from tripod.documents import Document
from tripod.errors import ConfigError, StoreError
from tripod.retrieval.ahead import map_ahead
from tripod.retrieval.index import Index
from tripod.retrieval.sync import SyncProgress, SyncReport


def sync(database: Path, origin: Any, **options: Any) -> SyncReport:
    async def go() -> SyncReport:
        async with Index(database, embedder=None) as index:
            return await index.sync(origin, **options)

    return tripod.run(go())


def sources(database: Path) -> list[str]:
    async def go() -> list[str]:
        async with Index(database, embedder=None) as index:
            return await index.sources()

    return tripod.run(go())


def outcome(report: SyncReport) -> tuple[int, int, int, int, int]:
    assert report.seen == report.added + report.changed + report.unchanged + len(report.failed)
    return report.added, report.changed, report.removed, report.unchanged, len(report.failed)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "kb.db"


def test_documents_are_mirrored_by_what_they_hold(database: Path) -> None:
    one = Document(source="1", text="quartz", metadata={"year": 2024})
    assert outcome(sync(database, [one, Document(source="2", text="basalt")])) == (2, 0, 0, 0, 0)
    assert outcome(sync(database, [one, Document(source="2", text="basalt")])) == (0, 0, 0, 2, 0)
    dated = Document(source="1", text="quartz", metadata={"year": 2025})
    assert outcome(sync(database, (dated, Document(source="3", text="granite")))) == (1, 1, 1, 0, 0)
    assert sources(database) == ["1", "3"]


def test_an_iterator_of_any_length_is_taken_as_it_comes(database: Path) -> None:
    drawn: list[int] = []
    ahead: list[int] = []

    def documents() -> Iterator[Document]:
        for i in range(700):
            drawn.append(i)
            yield Document(source=f"{i:03}", text="stone")

    def look(step: SyncProgress) -> None:
        ahead.append(len(drawn) - step.done)

    assert outcome(sync(database, documents(), progress=look)) == (700, 0, 0, 0, 0)
    assert max(ahead) < 300  # a batch, and a few that were read ahead of it
    assert outcome(sync(database, documents())) == (0, 0, 0, 700, 0)


def test_what_an_iterator_raises_rises_and_what_was_stored_is_kept(database: Path) -> None:
    def documents() -> Iterator[Document]:
        for i in range(600):
            yield Document(source=f"{i:03}", text="stone")
        raise ValueError("the feed broke")

    with pytest.raises(ValueError, match="the feed broke"):
        sync(database, documents())
    assert len(sources(database)) in range(256, 601)
    assert outcome(sync(database, [Document(source="000", text="stone")]))[3] == 1


def test_files_are_named_by_their_paths_and_must_be_there(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.md").write_text("# Quartz")
    Path("b.md").write_text("# Basalt")
    for name in ("a.md", "b.md"):
        os.utime(name, (1, 1))
    assert outcome(sync(database, ["a.md", Path("b.md"), "c.md"])) == (2, 0, 0, 0, 1)
    assert outcome(sync(database, ["a.md", Path("b.md")])) == (0, 0, 0, 2, 0)
    Path("b.md").unlink()
    report = sync(database, ["a.md", "b.md"])
    assert outcome(report) == (0, 0, 0, 1, 1)
    assert report.failed == (("b.md", "it cannot be read: No such file or directory"),)
    assert sources(database) == ["a.md", "b.md"]  # a disk that is not mounted empties nothing


def test_one_file_is_an_origin_of_its_own(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.md", "b.md"):
        Path(name).write_text(f"# {name}")
        assert outcome(sync(database, name))[0] == 1
    assert sources(database) == ["a.md", "b.md"]


def test_origins_do_not_touch_each_other(database: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("# Quartz")

    async def add() -> None:
        async with Index(database, embedder=None) as index:
            await index.add([Document(source="added", text="added")])

    tripod.run(add())
    sync(database, docs)
    sync(database, [Document(source="x", text="x")], name="one")
    sync(database, [Document(source="y", text="y")], name="two")
    assert sources(database) == ["a.md", "added", "x", "y"]
    assert outcome(sync(database, [Document(source="z", text="z")], name="two")) == (1, 0, 1, 0, 0)
    assert outcome(sync(database, docs)) == (0, 0, 0, 1, 0)
    assert outcome(sync(database, [], name="one")) == (0, 0, 1, 0, 0)
    assert sources(database) == ["a.md", "added", "z"]
    for name in ("a.md", "added", "z"):
        with pytest.raises(StoreError, match=f"'{name}' belongs to"):
            sync(database, [Document(source=name, text="mine")], name="three")


def test_a_source_that_is_named_twice_fails_the_second_time(database: Path) -> None:
    report = sync(database, [Document(source="1", text="quartz"), Document(source="1", text="basalt")])
    assert outcome(report) == (1, 0, 0, 0, 1)
    assert report.failed == (("1", "it is named twice"),)


def test_what_is_no_source_is_refused(database: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="7 is no source"):
        sync(database, [7])
    with pytest.raises(ConfigError, match="is a folder among files"):
        sync(database, [tmp_path])
    with pytest.raises(ConfigError, match="is not a folder"):
        sync(database, tmp_path / "nothing")


# Work ahead


@pytest.mark.parametrize("ahead", [2, 3, 7])
def test_results_come_in_order_and_few_are_held(ahead: int) -> None:
    import anyio

    begun: list[int] = []
    running = most = 0

    async def work(i: int) -> int:
        nonlocal running, most
        begun.append(i)
        running += 1
        most = max(most, running)
        await anyio.sleep(0.001 * (i % 3))
        running -= 1
        return i * i

    async def go() -> list[int]:
        taken = []
        async with map_ahead(work, range(30), ahead=ahead) as results:
            async for result in results:
                taken.append(result)
                assert len(begun) - len(taken) <= ahead
                await anyio.sleep(0.001)
        return taken

    assert tripod.run(go()) == [i * i for i in range(30)]
    assert 2 <= most <= ahead


def test_an_error_rises_where_its_result_is_taken_and_ends_the_others() -> None:
    import anyio

    ended: list[int] = []

    async def work(i: int) -> int:
        try:
            if i == 1:
                raise KeyError("one")
            await anyio.sleep(0 if i == 0 else 60)
        finally:
            ended.append(i)
        return i

    async def go() -> list[int]:
        taken: list[int] = []
        try:
            async with map_ahead(work, range(9), ahead=4) as results:
                async for result in results:
                    taken += [result]
        except KeyError:
            return taken
        raise AssertionError

    assert tripod.run(go()) == [0]
    assert set(ended) >= {0, 1}
