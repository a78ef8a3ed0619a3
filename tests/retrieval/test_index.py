"""The index: what a sync does, what a search finds, and what is refused."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import numpy as np
import pytest
from benchmarks.campaigns.hash_embedder import HashEmbedder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tripod
from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError, NotFoundError, RequestError, StoreError
from tripod.retrieval import sqlite_store
from tripod.retrieval.converters.plain_text import PlainText
from tripod.retrieval.index import Index
from tripod.retrieval.sync import SyncProgress, SyncReport

if TYPE_CHECKING:
    from tripod.protocols import Vectors

HASH = HashEmbedder()


class OtherEmbedder(HashEmbedder):
    fingerprint = "another one"


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for stem, text in texts.items():
        (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    return folder


def sync(database: Path, folder: Path, embedder: HashEmbedder | None = HASH, **options: Any) -> SyncReport:
    async def go() -> SyncReport:
        async with Index(database, embedder=embedder) as index:
            return await index.sync(folder, **options)

    return tripod.run(go())


def search(database: Path, q: str, embedder: HashEmbedder | None = HASH, **options: Any) -> list[Passage]:
    async def go() -> list[Passage]:
        async with Index(database, embedder=embedder) as index:
            return await index.search(q, **options)

    return tripod.run(go())


def outcome(report: SyncReport) -> tuple[int, int, int, int, int]:
    return report.added, report.changed, report.removed, report.unchanged, len(report.failed)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "kb.db"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    return write(tmp_path / "docs", lock="# Locks\n\nA mutex is freed by its owner.", pool="# Pools\n\nBlocks return to the pool.")


def test_a_sync_adds_changes_removes_and_leaves_alone(database: Path, docs: Path) -> None:
    write(docs, third="Third text.")
    assert outcome(sync(database, docs)) == (3, 0, 0, 0, 0)
    assert outcome(sync(database, docs)) == (0, 0, 0, 3, 0)
    write(docs, lock="# Locks\n\nA semaphore counts.", fourth="Fourth text.")
    (docs / "third.md").unlink()
    report = sync(database, docs)
    assert outcome(report) == (1, 1, 1, 1, 0)
    assert report.seen == len(list(docs.iterdir()))
    assert [passage.source for passage in search(database, "semaphore", mode="bm25")] == ["lock.md"]
    assert search(database, "mutex", mode="bm25") == []
    assert search(database, "third", mode="bm25") == []


def test_a_touched_file_is_unchanged_and_a_change_of_the_same_size_and_time_is_seen(database: Path, docs: Path) -> None:
    sync(database, docs)
    os.utime(docs / "lock.md", (1, 1))
    assert outcome(sync(database, docs)) == (0, 0, 0, 2, 0)
    fresh = (docs / "pool.md").stat().st_mtime_ns  # so young that it may change again within one tick of the file system's clock
    (docs / "pool.md").write_text("# Pools\n\nBlocks return to the loop.")
    os.utime(docs / "pool.md", ns=(fresh, fresh))
    assert outcome(sync(database, docs)) == (0, 1, 0, 1, 0)


@pytest.fixture
def old_docs(docs: Path) -> Path:
    """Files of yesterday: their times are trusted, so that they are not read again."""
    for path in docs.iterdir():
        os.utime(path, (time.time() - 86_400,) * 2)
    return docs


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    read_bytes = Path.read_bytes

    def note_and_read(path: Path) -> bytes:
        names.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", note_and_read)
    return names


def test_an_old_file_is_not_read_again_unless_it_lacks_vectors_or_was_moved(database: Path, old_docs: Path, reads: list[str]) -> None:
    for embedder, folder, expected in [
        (None, old_docs, 2),
        (None, old_docs, 0),
        (HASH, old_docs, 2),
        (HASH, old_docs, 0),
        (None, old_docs, 0),
        (HASH, old_docs.with_name("moved"), 2),
        (HASH, old_docs.with_name("moved"), 0),
    ]:
        if not folder.exists():
            old_docs.rename(folder)
        reads.clear()
        sync(database, folder, embedder)
        assert len(reads) == expected, (embedder, folder)


def test_a_file_that_grows_while_it_is_read_is_read_again(database: Path, old_docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_docs / "lock.md"
    listed = path.stat()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: b"# Locks, of which only this much was written yet")
        sync(database, old_docs)
    monkeypatch.setattr("tripod.retrieval.sync._BATCH_PASSAGES", 1)
    path.write_bytes(b"# Locks, of which only this much was written YET")  # as long as what was read, at the time that was listed
    os.utime(path, ns=(listed.st_mtime_ns, listed.st_mtime_ns))
    sync(database, old_docs)
    assert "YET" in search(database, "locks", k=1)[0].text


def test_a_file_that_is_too_large_is_named_and_not_read(
    database: Path, docs: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tripod.retrieval.origins.MAX_FILE_BYTES", 100)
    write(docs, large="x" * 101)
    report = sync(database, docs)
    assert report.failed == (("large.md", "it has 101 bytes, and at most 100 are read; split it"),)
    assert "large.md" not in reads


def test_the_embedder_reads_the_title_of_the_section_too(database: Path, docs: Path) -> None:
    seen: list[str] = []

    class Noting(HashEmbedder):
        async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
            seen.extend(texts)
            return await super().embed(texts, kind=kind)

    sync(database, docs, Noting())
    assert seen == ["Locks\n# Locks\n\nA mutex is freed by its owner.", "Pools\n# Pools\n\nBlocks return to the pool."]


def test_many_added_documents_are_embedded_some_at_a_time(database: Path) -> None:
    sizes: list[int] = []

    class Counting(HashEmbedder):
        async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
            sizes.append(len(texts))
            return await super().embed(texts, kind=kind)

    async def go() -> int:
        async with Index(database, embedder=Counting()) as index:
            await index.add(Document(source=str(i), text="stone") for i in range(600))
            return len(await index.sources())

    assert tripod.run(go()) == 600
    assert sizes == [256, 256, 88]


def test_syncs_of_one_index_go_one_after_the_other(database: Path, docs: Path) -> None:
    async def go() -> list[SyncReport]:
        reports: list[SyncReport] = []
        async with Index(database, embedder=HASH) as index, anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(lambda: _append(reports, index.sync(docs)))
        return reports

    assert [outcome(report) for report in tripod.run(go())] == [(2, 0, 0, 0, 0), (0, 0, 0, 2, 0)]


async def _append(reports: list[SyncReport], sync: Coroutine[Any, Any, SyncReport]) -> None:
    reports.append(await sync)


def test_passages_say_where_they_stand(database: Path, docs: Path) -> None:
    sync(database, docs)
    [passage] = search(database, "owner of a mutex", k=1)
    text = (docs / "lock.md").read_text()
    assert text[passage.start : passage.end] == passage.text
    assert (passage.source, passage.section, passage.line, passage.metadata["format"]) == ("lock.md", "Locks", 1, "markdown")
    assert passage.score is not None


def test_a_bad_file_fails_alone_and_its_old_passages_go(database: Path, docs: Path) -> None:
    sync(database, docs)
    (docs / "lock.md").write_bytes(b"mutex \xff\xfe\xfd")
    report = sync(database, docs)
    assert outcome(report) == (0, 0, 0, 1, 1)
    assert report.failed[0][0] == "lock.md"
    assert "0xff at offset 6" in report.failed[0][1]
    assert search(database, "mutex", mode="bm25") == []
    assert outcome(sync(database, docs)) == (0, 0, 0, 1, 1)  # it is tried again, and named again
    write(docs, lock="mutex again")
    assert outcome(sync(database, docs)) == (1, 0, 0, 1, 0)


def test_a_file_that_vanishes_during_a_sync_is_removed(database: Path, docs: Path) -> None:
    write(docs, a="first", z="mutex last")
    sync(database, docs)
    write(docs, a="first, changed", z="mutex last, changed")

    class Deleting(PlainText):  # a file goes after the folder was listed, while an earlier one is converted
        suffixes = frozenset({".md"})

        def convert(self, content: bytes, source: str) -> Document:
            (docs / "z.md").unlink(missing_ok=True)
            return super().convert(content, source)

    async def go() -> SyncReport:
        async with Index(database, embedder=HASH, converters=[Deleting()]) as index:
            return await index.sync(docs)

    report = tripod.run(go())
    assert outcome(report) == (0, 1, 1, 2, 0)
    assert search(database, "last", mode="bm25") == []


@contextmanager
def without_root(folder: Path) -> Iterator[None]:
    """Whoever runs the tests, permissions hold in here."""
    if os.geteuid() != 0:
        yield
        return
    for path in [folder, *folder.parents]:
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444])  # neither listed nor entered; listed and not entered
def test_a_folder_that_cannot_be_entered_keeps_what_the_index_has_of_it(docs: Path, tmp_path: Path, mode: int) -> None:
    write(docs / "closed", inner="quartz")

    async def go() -> SyncReport:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.sync(docs)
            (docs / "closed").chmod(mode)
            try:
                with without_root(docs):
                    report = await index.sync(docs)
            finally:
                (docs / "closed").chmod(0o755)
            assert await index.search("quartz", mode="bm25")
            return report

    report = tripod.run(go())
    assert (report.removed, report.unchanged) == (0, 2)
    if mode == 0:
        assert report.ignored == {"folder not listed: Permission denied": 1}
    else:
        assert report.failed == (("closed/inner.md", "it cannot be read: Permission denied"),)


def test_a_format_whose_reader_is_not_installed_fails_alone(database: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docs / "a.pdf").write_bytes(b"%PDF-1.4")
    hidden = docs.parent / "hidden"
    hidden.mkdir()
    (hidden / "pypdf.py").write_text("raise ModuleNotFoundError(name='pypdf')")  # found first by the process that reads the file
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")]))
    report = sync(database, docs)
    assert outcome(report) == (2, 0, 0, 0, 1)
    assert "pip install 'tripod[retrieval]'" in report.failed[0][1]


def test_files_without_passages_are_stored_as_the_sync_goes_on(database: Path, tmp_path: Path) -> None:
    docs = write(tmp_path / "empty", **{f"f{i:03}": "" for i in range(300)})
    stored_at_progress: list[int] = []
    drawn: list[int] = []

    def look(step: SyncProgress) -> None:
        if step.done in (1, 256):
            with closing(sqlite3.connect(database)) as connection:
                stored_at_progress.extend(connection.execute("SELECT count(*) FROM sources").fetchone())
            drawn.append(step.total)

    class Picky(HashEmbedder):
        async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
            assert texts  # not every model takes an empty batch
            return await super().embed(texts, kind=kind)

    assert outcome(sync(database, docs, Picky(), progress=look)) == (300, 0, 0, 0, 0)
    assert stored_at_progress == [1, 256]

    async def go() -> None:
        async with Index(database, embedder=Picky()) as index:
            await index.sync((Document(source=f"d{i}", text="") for i in range(300)), name="empty", progress=look)

    tripod.run(go())
    assert 256 <= drawn[2] < 300  # of an iterator no more is drawn than one batch holds, and the few that are read ahead


def test_half_of_a_surrogate_pair_is_refused_by_name(database: Path) -> None:
    async def go(document: Document) -> None:
        async with Index(database, embedder=None) as index:
            await index.add([document])

    for document in (Document(source="a", text="x\ud800"), Document(source="a", text="x", title="\ud800")):
        with pytest.raises(ConfigError, match="'a' cannot be stored: it holds half of a surrogate pair"):
            tripod.run(go(document))


def test_progress_names_every_source_that_needed_work(database: Path, docs: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    sync(database, docs, progress=lambda step: seen.append((step.done, step.total, step.source)))
    assert seen == [(1, 2, "lock.md"), (2, 2, "pool.md")]


def test_an_empty_folder_is_refused_and_the_index_is_kept(database: Path, docs: Path) -> None:
    sync(database, docs)
    for path in docs.iterdir():
        path.unlink()
    (docs / "image.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds no document \(suffix .png: 1\)"):
        sync(database, docs)
    assert search(database, "mutex", mode="bm25")


def test_one_pattern_is_not_taken_for_a_list_of_letters(database: Path, docs: Path) -> None:
    with pytest.raises(ConfigError, match=r"exclude='drafts' is one string.*\['drafts'\]"):
        sync(database, docs, exclude="drafts")


def test_an_index_mirrors_one_folder(database: Path, docs: Path, tmp_path: Path) -> None:
    sync(database, docs)
    other = write(tmp_path / "other", x="x")
    with pytest.raises(StoreError, match=r"mirrors .*docs, not .*other"):
        sync(database, other)
    docs.rename(tmp_path / "moved")
    assert outcome(sync(database, tmp_path / "moved")) == (0, 0, 0, 2, 0)


def test_added_documents_survive_a_sync_and_are_replaced_by_name(database: Path, docs: Path) -> None:
    async def go() -> tuple[list[str], list[Passage], Document]:
        async with Index(database, embedder=HASH) as index:
            await index.add([Document(source="memo:1", text="quartz"), Document(source="memo:2", text="basalt")])
            await index.sync(docs)
            await index.add([Document(source="memo:1", text="granite")])
            return await index.sources(), await index.search("quartz granite", mode="bm25"), await index.document("memo:1")

    sources, found, document = tripod.run(go())
    assert sources == ["lock.md", "memo:1", "memo:2", "pool.md"]
    assert [passage.text for passage in found] == ["granite"]
    assert document.text == "granite"


def test_a_document_comes_back_as_it_was(database: Path) -> None:
    from tripod.documents import Line, Page, Section

    paged = Document(
        source="a.pdf",
        text="one\n\ntwo",
        title="T",
        pages=(Page(1, 0, 3), Page(2, 5, 8)),
        metadata={"year": 2024, "draft": False, "x": 0.5},
    )
    lined = Document(source="b.html", text="one two", sections=(Section(4, 7, "S"),), lines=(Line(0, 3), Line(4, 9)))

    async def go() -> None:
        async with Index(database, embedder=None) as index:
            await index.add([paged, lined])
            assert await index.document("a.pdf") == paged
            assert await index.document("b.html") == lined
            [two] = await index.search("two", where={"source": "a.pdf"})
            assert (two.page, two.line) == (1, None)
            [two] = await index.search("two", where={"source": "b.html"})
            assert (two.text, two.section, two.line) == ("two", "S", 9)
            with pytest.raises(NotFoundError, match="no source 'c'"):
                await index.document("c")

    tripod.run(go())


# Search


def test_dense_search_is_the_exact_order_of_the_dot_products(database: Path) -> None:
    words = ["river stone", "stone", "lantern river", "copper", "stone copper river", "meadow"]

    async def go() -> None:
        async with Index(database, embedder=HASH) as index:
            await index.add(Document(source=f"d{i}", text=text) for i, text in enumerate(words))
            vectors = (await HASH.embed(words, kind="passage")).astype(np.float64)
            query = (await HASH.embed(["river stone"], kind="query"))[0].astype(np.float64)
            expected = [f"d{i}" for i in np.argsort(-(vectors @ query))]
            found = await index.search("river stone", mode="dense", k=100)
            assert [passage.source for passage in found] == expected
            assert [passage.score for passage in found] == pytest.approx(sorted(vectors @ query, reverse=True), abs=1e-6)

    tripod.run(go())


def test_bm25_scores_by_hand(database: Path) -> None:
    # Two of four passages hold the word, each of average length, once: idf = ln((4 - 2 + .5) / (2 + .5)) = 0, which FTS5 raises to
    # 1e-6; of a word in one passage it is ln(3.5 / 1.5) = 0.8473, and tf * 2.2 / (tf + 1.2) = 1 for tf = 1.
    async def go() -> None:
        async with Index(database, embedder=None) as index:
            await index.add(Document(source=str(i), text=text) for i, text in enumerate(["red ant", "red bee", "cat dog", "elk fox"]))
            [best] = await index.search("bees")  # stemmed
            assert (best.source, best.score) == ("1", pytest.approx(0.8473, abs=1e-4))
            assert [passage.source for passage in await index.search("red bee")] == ["1", "0"]

    tripod.run(go())


def test_a_hybrid_score_by_hand(database: Path) -> None:
    # Of "bee" and "fly", one passage of four holds "bee": BM25 is its idf, ln(3.5 / 1.5), as above. At most it could be 2.2 times
    # that for "bee" and 2.2 ln(4.5 / 0.5) for "fly". Half of that share and half of the cosine are the score.
    async def go() -> None:
        async with Index(database, embedder=HASH) as index:
            texts = ["red ant", "red bee", "cat dog", "elk fox"]
            await index.add(Document(source=str(i), text=text) for i, text in enumerate(texts))
            [best, *_] = await index.search("bee fly")
            passage, query = await HASH.embed(["red bee"], kind="passage"), await HASH.embed(["bee fly"], kind="query")
            share = math.log(3.5 / 1.5) / (2.2 * (math.log(3.5 / 1.5) + math.log(4.5 / 0.5)))
            assert (best.source, best.score) == ("1", pytest.approx(0.5 * share + 0.5 * float(passage[0] @ query[0]), abs=1e-5))

    tripod.run(go())


def test_words_are_counted_in_all_their_forms(database: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=None) as index:
            assert await index.count(["bee", "ant"]) == [0, 0]  # nothing was written yet
            await index.add(Document(source=str(i), text=text) for i, text in enumerate(["red ants, red ant", "red bee", "cat", "the and"]))
            assert await index.count(["bees", "ant", "red", "dog", "the", "?", '"x" OR red', "RED"]) == [1, 1, 2, 0, 1, 0, 2, 2]

    tripod.run(go())


def test_ties_are_broken_by_place_whatever_the_order_of_indexing(tmp_path: Path) -> None:
    async def order(name: str, sources: list[str]) -> list[str]:
        async with Index(tmp_path / name, embedder=HASH) as index:
            await index.add(Document(source=source, text="same words") for source in sources)
            return [passage.source for passage in await index.search("same words", k=3)]

    assert tripod.run(order("a.db", ["c", "a", "d", "b"])) == tripod.run(order("b.db", ["d", "b", "a", "c"])) == ["a", "b", "c"]


def test_filters_match_by_value_and_type(database: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=HASH) as index:
            await index.add(
                [
                    Document(source="a", text="stone", metadata={"year": 2024, "draft": True, "lang": "en"}),
                    Document(source="b", text="stone", metadata={"year": 2025, "draft": False}),
                    Document(source="c", text="stone", metadata={"year": "2024", "draft": 1}),
                ]
            )
            for where, expected in [
                ({"year": 2024}, "a"),
                ({"year": [2024, 2025]}, "ab"),
                ({"year": 2024.0}, "a"),
                ({"draft": True}, "a"),
                ({"draft": 1}, "c"),
                ({"lang": "en"}, "a"),
                ({"lang": "en", "year": 2025}, ""),
                ({"nothing": 1}, ""),
                ({"source": ["a", "c"]}, "ac"),
                ({"draft": [False, 1]}, "bc"),
                ({"year": ["2024", 2025]}, "bc"),
                ({"source": [*map(str, range(2000)), "b"]}, "b"),
                ({"year": [*range(2000), 2025]}, "b"),
                ({"year": 10**30}, ""),
                ({"lang": "\ud800", "\ud800": 1}, ""),
                ({'x" OR 1=1 --': "'; DROP TABLE sources"}, ""),
                ({}, "abc"),
            ]:
                for mode in ("bm25", "dense", "hybrid"):
                    assert "".join(sorted(p.source for p in await index.search("stone", mode=mode, where=where))) == expected, (where, mode)
            for where in ({"year": None}, {"year": []}, {"year": {"gt": 3}}, {"year": [None]}, {"year": float("nan")}):
                with pytest.raises(RequestError, match="where"):
                    await index.search("stone", where=where)

    tripod.run(go())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"q": "  "}, "empty"), ({"q": "stone \udcff"}, "surrogate"), ({"q": "x", "k": 0}, "k=0"), ({"q": "x", "mode": "fuzzy"}, "'fuzzy'")],
)
def test_requests_that_cannot_be_are_refused(database: Path, docs: Path, options: dict[str, Any], message: str) -> None:
    sync(database, docs)
    with pytest.raises(RequestError, match=message):
        search(database, **options)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(q=st.text(alphabet=st.characters(), min_size=1) | st.from_regex(r'["*()^:{}+\-a-c ]{1,20}', fullmatch=True))
def test_no_query_can_break_a_search(database: Path, docs: Path, q: str) -> None:
    if not database.exists():
        sync(database, docs)
    if q.strip() and q.encode(errors="ignore").decode() == q:
        for mode in ("bm25", "hybrid"):
            assert len(search(database, q, mode=mode)) <= 2


# Lexical and dense


def test_without_an_embedder_search_is_lexical_and_says_so(database: Path, docs: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=None) as index:
            await index.sync(docs)
            assert index.is_lexical
            assert index.mode_note == "search is by words only: no embedder was given"
            assert await index.search("mutex") == await index.search("mutex", mode="bm25")
            with pytest.raises(RequestError, match="no embedder was given"):
                await index.search("mutex", mode="dense")

    tripod.run(go())


def test_an_embedder_that_comes_later_fills_in_the_vectors(database: Path, docs: Path) -> None:
    sync(database, docs, None)

    async def go() -> None:
        async with Index(database, embedder=HASH) as index:
            assert index.mode_note == "search is by words only: 2 sources have no vectors yet; sync the index to embed them"
            assert await index.search("mutex") == await index.search("mutex", mode="bm25")
            assert outcome(await index.sync(docs)) == (0, 0, 0, 2, 0)
            assert index.mode_note is None
            assert len(await index.search("mutex")) == 2  # by meaning, everything is a candidate

    tripod.run(go())


def test_an_index_of_another_embedder_is_refused_with_both_names(database: Path, docs: Path) -> None:
    sync(database, docs)
    with pytest.raises(StoreError, match="made with the embedder 'hash-of-words, 32 dimensions', and is opened with 'another one'"):
        sync(database, docs, OtherEmbedder())
    assert search(database, "mutex", None, mode="hybrid")  # words need no embedder


def test_two_embedders_that_opened_one_empty_index_do_not_mix(database: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=HASH) as first, Index(database, embedder=OtherEmbedder()) as second:
            await first.add([Document(source="a", text="stone")])
            with pytest.raises(StoreError, match="made with the embedder"):
                await second.add([Document(source="b", text="stone")])
            assert await first.sources() == ["a"]

    tripod.run(go())


def test_vectors_that_another_embedder_brought_meanwhile_are_not_compared(database: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=None) as first:
            await first.add([Document(source="empty", text="")])
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DELETE FROM sources")
            connection.commit()
        async with Index(database, embedder=HASH) as index, Index(database, embedder=OtherEmbedder()) as other:
            await other.add([Document(source="a", text="stone")])
            with pytest.raises(StoreError, match="made with the embedder 'another one'"):
                await index.search("stone")
            assert await index.search("stone", mode="bm25")

    tripod.run(go())


def test_the_first_vectors_decide_whose_index_it_is(database: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=HASH) as first, Index(database, embedder=OtherEmbedder()) as second:
            await second.store.remove("nothing")  # its writer has seen that nobody owns the index yet
            await first.add([Document(source="a", text="stone")])
            with pytest.raises(StoreError, match=r"made with the embedder 'hash-of-words"):
                await second.add([Document(source="b", text="stone")])
            assert await first.sources() == ["a"]

    tripod.run(go())


def test_an_index_that_was_filled_without_vectors_meanwhile_is_searched_by_words(database: Path) -> None:
    async def go() -> None:
        async with Index(database, embedder=HASH) as index, Index(database, embedder=None) as other:
            await other.add([Document(source="a", text="stone"), Document(source="b", text="river")])
            assert [passage.source for passage in await index.search("stone")] == ["a"]
            assert await index.search("stone", mode="dense") == []

    tripod.run(go())


def make_closed_index(tmp_path: Path) -> Path:
    """An index where nothing may be written."""
    folder = write(tmp_path / "closed")

    async def add() -> None:
        async with Index(folder / "kb.db", embedder=None) as index:
            await index.add([Document(source="a", text="stone")])

    tripod.run(add())
    (folder / "kb.db").chmod(0o444)
    return folder


def test_an_index_where_nothing_may_be_written_is_searched(tmp_path: Path) -> None:
    folder = make_closed_index(tmp_path)
    folder.chmod(0o555)
    with without_root(folder):
        assert [passage.source for passage in search(folder / "kb.db", "stone", None)] == ["a"]


def test_an_unfinished_log_where_nothing_may_be_written_says_so(tmp_path: Path) -> None:
    folder = make_closed_index(tmp_path)
    (folder / "kb.db-wal").write_bytes(b"what a writer left")
    folder.chmod(0o555)
    with without_root(folder), pytest.raises(StoreError, match="copy the index to where you may write"):
        search(folder / "kb.db", "stone", None)


def test_another_length_of_passages_is_another_index(database: Path, docs: Path) -> None:
    sync(database, docs)

    async def go() -> None:
        async with Index(database, embedder=HASH, max_passage_tokens=50):
            pass

    with pytest.raises(StoreError, match="made with the pipeline"):
        tripod.run(go())


# The file


def test_a_file_that_is_no_database_is_left_as_it_is(database: Path, docs: Path) -> None:
    database.write_bytes(b"precious notes\n" * 100)
    with pytest.raises(StoreError, match="not an index of Tripod's"):
        sync(database, docs)
    assert database.read_bytes() == b"precious notes\n" * 100


def test_another_programs_database_is_left_as_it_is(database: Path, docs: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE photos (id)")
    connection.commit()
    connection.close()
    before = database.read_bytes()
    with pytest.raises(StoreError, match="not an index of Tripod's"):
        sync(database, docs)
    assert database.read_bytes() == before


def test_an_index_of_a_newer_version_is_refused(database: Path, docs: Path) -> None:
    sync(database, docs)
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer Tripod"):
        search(database, "mutex")


def test_a_damaged_index_is_named(database: Path, docs: Path) -> None:
    sync(database, docs)
    content = database.read_bytes()
    database.write_bytes(content[:4096] + b"\x00" * (len(content) - 4096))
    with pytest.raises(StoreError, match=r"damaged|not an index"):
        search(database, "mutex")


def test_searching_where_no_index_is_makes_none(database: Path) -> None:
    with pytest.raises(StoreError, match="no index at"):
        search(database, "mutex")
    assert not database.exists()


def test_an_index_that_is_not_open_says_how_to_open_it(database: Path) -> None:
    with pytest.raises(StoreError, match="async with"):
        tripod.run(Index(database, embedder=None).sync("."))


def test_a_writer_that_waits_too_long_says_so(database: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync(database, docs)
    write(docs, lock="changed")
    monkeypatch.setattr("tripod.retrieval.sqlite_file.BUSY_TIMEOUT_S", 0.05)
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process has been writing"):
        sync(database, docs)
    assert search(database, "mutex", mode="bm25")  # readers are not held up
    blocker.execute("ROLLBACK")
    blocker.close()
    assert outcome(sync(database, docs)) == (0, 1, 0, 1, 0)


def test_two_writers_at_once_end_with_one_whole_index(database: Path, tmp_path: Path) -> None:
    docs = write(tmp_path / "many", **{f"f{i}": f"# T{i}\n\nstone {i} river" for i in range(30)})
    reports: list[SyncReport] = []
    threads = [threading.Thread(target=lambda: reports.append(_sync_in_own_loop(database, docs))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.seen for report in reports] == [30, 30]
    assert outcome(sync(database, docs)) == (0, 0, 0, 30, 0)
    assert len(search(database, "stone", k=100, mode="bm25")) == 30


def _sync_in_own_loop(database: Path, docs: Path) -> SyncReport:
    async def go() -> SyncReport:
        async with Index(database, embedder=HASH) as index:
            return await index.sync(docs)

    return anyio.run(go)


def test_a_reader_during_a_sync_sees_every_source_old_or_new(database: Path, tmp_path: Path) -> None:
    def texts(version: str) -> dict[str, str]:
        return {f"f{i}": "\n\n".join(f"# Part {part}\n\n{version} stone" for part in range(3)) for i in range(20)}

    docs = write(tmp_path / "many", **texts("old"))
    sync(database, docs)
    write(docs, **texts("new"))

    async def go() -> int:
        mixed_views = 0
        async with Index(database, embedder=HASH) as writer, Index(database, embedder=HASH) as reader:
            done = anyio.Event()

            async def write_all() -> None:
                await writer.sync(docs)
                done.set()

            async with anyio.create_task_group() as group:
                group.start_soon(write_all)
                while not done.is_set():
                    found = await reader.search("stone", k=1000)
                    versions: dict[str, set[str]] = {}
                    for passage in found:
                        versions.setdefault(passage.source, set()).add("old" if "old" in passage.text else "new")
                    assert len(found) == 60
                    assert all(len(seen) == 1 for seen in versions.values())
                    mixed_views += len(set().union(*versions.values())) == 2
                    await anyio.sleep(0)
        return mixed_views

    assert tripod.run(go()) > 0  # the reader did look while the sync was half done


def test_what_asyncio_cancels_disturbs_nobody_else(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.wait_for` leaves the thread that works for it at work."""

    def slowly(method: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            time.sleep(0.2)
            return method(*arguments)

        return work

    async def go() -> None:
        async with Index(database, embedder=None) as index:
            await index.add([Document(source="a", text="stone")])
            monkeypatch.setattr(sqlite_store, "read_document", slowly(sqlite_store.read_document))
            monkeypatch.setattr(sqlite_store, "insert_source", slowly(sqlite_store.insert_source))
            for slow in (index.document("a"), index.add([Document(source="b", text="river", sections=(Section(0, 5),))])):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(slow, 0.1)
                assert await index.search("stone")
                await index.add([Document(source="c", text="copper")])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(index.document("a"), 0.1)
        async with Index(database, embedder=None) as index:
            assert await index.sources() == ["a", "b", "c"]

    asyncio.run(go())
