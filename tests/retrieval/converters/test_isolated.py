"""The worker process: what a hostile file can do to it, and what it cannot do to the sync."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import tripod
from tests.retrieval.converters.hostile import Hostile
from tripod.documents import Document, Line, Page, Section
from tripod.errors import ConfigError, ConversionError, MissingExtraError
from tripod.retrieval.converters.isolated import Isolated, Limits, Workers
from tripod.retrieval.converters.plain_text import PlainText
from tripod.retrieval.index import Index
from tripod.retrieval.sync import SyncReport

TIGHT = Isolated(Hostile(), Limits(timeout_s=0.8, memory_bytes=400 << 20))


@pytest.fixture(autouse=True)
def importable_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import nothing from the current folder; so they are told where the tests are."""
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hang", r"more than 0\.8 s"),
        (b"loop", r"more than 0\.8 s"),
        (b"crash", "died .SIGSEGV"),
        (b"exit", "died .exit code 7"),
        (b"eat", "too much memory"),
        (b"raise", "reading it failed: KeyError: 'no such key'"),
    ],
)
def test_a_hostile_file_is_an_error_of_its_own_and_the_next_one_is_read(content: bytes, reason: str) -> None:
    with Workers() as workers:
        with pytest.raises(ConversionError, match=reason):
            workers.convert(TIGHT, content, "a.bad")
        assert workers.convert(TIGHT, b"fine", "b.bad").text.startswith("fine")


def test_what_a_reader_prints_is_no_answer() -> None:
    assert TIGHT.convert(b"print", "a.bad").text.startswith("print")


def test_a_missing_package_is_told_as_such() -> None:
    with pytest.raises(MissingExtraError, match=r"reading a .bad needs the package 'hostile'.*tripod\[documents\]"):
        TIGHT.convert(b"miss", "a.bad")


def test_a_worker_is_used_again_and_ends_with_its_owner() -> None:
    assert len(b"x" * (600 << 20)) > 0  # what its owner held at its peak is not the worker's
    with Workers() as workers:
        pids = [workers.convert(TIGHT, b"pid", "a.bad").text for _ in range(3)]
    assert len(set(pids)) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids[0].split()[1]), 0)


def test_closing_ends_those_that_are_at_work() -> None:
    workers, reasons = Workers(), list[str]()

    def wait() -> None:
        try:
            workers.convert(Isolated(Hostile()), b"hang", "a.bad")
        except ConversionError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    while not workers._busy:
        time.sleep(0.01)
    workers.close()
    thread.join(timeout=10)
    assert len(reasons) == 1
    with pytest.raises(ConversionError, match="sync was ended"):
        workers.convert(TIGHT, b"fine", "a.bad")


class Whole:
    suffixes = frozenset({".bad"})

    def convert(self, content: bytes, source: str) -> Document:
        return Document(
            source=source,
            text="é one\n\ntwo",
            title="T",
            sections=(Section(0, 5, "S"),),
            pages=(Page(1, 0, 5), Page(2, 7, 10)),
            lines=(Line(0, 3), Line(7, 9)),
            metadata={"year": 2024, "x": 0.5, "draft": False, "name": "ü"},
        )


def test_a_document_comes_back_as_it_was_made() -> None:
    assert Isolated(Whole()).convert(b"", "a.bad") == Whole().convert(b"", "a.bad")


def test_a_converter_that_cannot_be_sent_is_named() -> None:
    class Local(Hostile): ...

    with pytest.raises(ConfigError, match="cannot be sent to a worker process"):
        Isolated(Local()).convert(b"fine", "a.bad")


def test_limits_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ConfigError, match="timeout_s=0"):
        Limits(timeout_s=0)


def test_a_sync_names_hostile_files_with_their_reasons_and_reads_the_others(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, content in {"a": b"hang", "b": b"fine quartz", "c": b"crash", "d": b"eat", "e": b"basalt"}.items():
        (docs / f"{name}.bad").write_bytes(content)
    (docs / "f.txt").write_text("granite")

    async def go() -> SyncReport:
        async with Index(tmp_path / "kb.db", embedder=None, converters=[PlainText(), TIGHT]) as index:
            report = await index.sync(docs)
            assert sorted(hit.source for hit in await index.search("quartz basalt granite")) == ["b.bad", "e.bad", "f.txt"]
            return report

    report = tripod.run(go())
    assert (report.added, report.seen) == (3, 6)
    assert [source for source, _ in report.failed] == ["a.bad", "c.bad", "d.bad"]
    assert [reason.split(" ")[0:3] for _, reason in report.failed] == [
        ["reading", "it", "took"],
        ["the", "process", "that"],
        ["reading", "it", "needs"],
    ]


def test_a_sync_that_is_cancelled_does_not_wait_for_a_file_that_hangs(tmp_path: Path) -> None:
    import anyio

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.bad").write_bytes(b"hang")

    async def go() -> float:
        async with Index(tmp_path / "kb.db", embedder=None, converters=[Isolated(Hostile())]) as index:
            started = anyio.current_time()
            with anyio.move_on_after(0.3):
                await index.sync(tmp_path / "docs")
            return anyio.current_time() - started

    assert tripod.run(go()) < 10
