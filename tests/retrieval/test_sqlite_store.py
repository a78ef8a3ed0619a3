"""The store in a file: the contract of all stores, and what is its own."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tripod
from tripod.documents import Document, Passage, SourceState
from tripod.errors import StoreError
from tripod.filters import Where
from tripod.protocols import Store
from tripod.retrieval import ann_search, fts5, sqlite_schema
from tripod.retrieval.passage_table import PassageTable
from tripod.retrieval.sqlite_store import SqliteStore
from tripod.retrieval.vector_format import FORMATS, VectorFormat, decode, encode
from tripod.testing.store import EMBEDDER, StoreContract

if TYPE_CHECKING:
    from tripod.protocols import Vectors

DIM = 24


class TestSqliteStore(StoreContract):
    @asynccontextmanager
    async def open_store(self, embedder: str | None = EMBEDDER) -> AsyncIterator[Store]:
        with tempfile.TemporaryDirectory() as folder:
            async with aclosing(SqliteStore(Path(folder) / "kb.db", pipeline="p", embedder=embedder)) as store:
                yield store


def random_vectors(number: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(number, DIM)).astype(np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


async def put(store: Store, name: str, vectors: Vectors, text: str = "stone") -> None:
    document = Document(source=name, text=text, metadata={"name": name})
    passages = [Passage(source=name, start=0, end=len(text), text=text)] * len(vectors)
    await store.replace(document, passages, vectors, SourceState(digest="d"))


def with_store(path: Path, use: Callable[[SqliteStore], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def go() -> None:
        async with aclosing(SqliteStore(path, pipeline="p", embedder="e", **options)) as store:
            await use(store)

    tripod.run(go())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kb.db"


# What a reader loads again


def test_a_reader_loads_only_what_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []
    add = PassageTable.add

    def note_and_add(table: PassageTable, source_id: int, source: str, *rest: Any) -> None:
        added.append(source)
        add(table, source_id, source, *rest)

    monkeypatch.setattr(PassageTable, "add", note_and_add)

    async def use(writer: SqliteStore) -> None:
        async with aclosing(SqliteStore(path, pipeline="p", embedder="e")) as reader:
            for i in range(20):
                await put(writer, f"s{i:02}", random_vectors(3, i))
            await reader.search(None, random_vectors(1)[0], k=1)
            assert len(added) == 20
            await put(writer, "s19", random_vectors(2, 77))  # the last, so that SQLite gives its id again
            await writer.remove("s00")
            await put(writer, "new", random_vectors(1, 78))
            found = await reader.search(None, random_vectors(1)[0], k=99)
            assert added[20:] == ["s19", "new"]
            assert len(found) == 18 * 3 + 2 + 1
            fresh = SqliteStore(path, pipeline="p", embedder="e")
            assert await fresh.search(None, random_vectors(1)[0], k=99) == found
            await fresh.aclose()

    with_store(path, use)


def test_a_reader_that_missed_too_many_changes_loads_everything(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_schema, "KEPT_CHANGES", 4)

    async def use(writer: SqliteStore) -> None:
        async with aclosing(SqliteStore(path, pipeline="p", embedder="e")) as reader:
            for i in range(9):
                await put(writer, f"s{i}", random_vectors(1, i))
                if i == 2:
                    await reader.search("stone", None, k=1)
            found = await reader.search(None, random_vectors(1, 5)[0], k=9)
            assert len(found) == 9
            assert (found[0].source, found[0].score) == ("s5", pytest.approx(1.0, abs=1e-6))

    with_store(path, use)


# Smaller vectors


@pytest.mark.parametrize(("form", "bytes_a_vector", "error"), [("f32", 4 * DIM, 1e-7), ("f16", 2 * DIM, 1e-3), ("int8", DIM + 4, 0.01)])
def test_smaller_vectors_take_less_and_give_nearly_the_same_scores(
    path: Path, form: VectorFormat, bytes_a_vector: int, error: float
) -> None:
    vectors, query = random_vectors(300), random_vectors(1, 5)[0]

    async def use(store: SqliteStore) -> None:
        for i, vector in enumerate(vectors):
            await put(store, f"{i:03}", vector[None])
        exact = vectors.astype(np.float64) @ query.astype(np.float64)
        found = await store.search(None, query, k=300)
        assert max(abs(passage.score - exact[int(passage.source)]) for passage in found if passage.score is not None) < error
        best = {f"{i:03}" for i in np.argsort(-exact)[:10]}
        assert len(best & {passage.source for passage in found[:10]}) >= 9

    with_store(path, use, vectors=form)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT DISTINCT length(vector) FROM passages").fetchall() == [(bytes_a_vector,)]
    with_store(path, use)  # who does not say how vectors are kept takes them as they are
    other: VectorFormat = "f32" if form != "f32" else "f16"
    with pytest.raises(StoreError, match=f"made with the vectors '{form}'"):
        SqliteStore(path, pipeline="p", embedder="e", vectors=other)


@pytest.mark.parametrize("form", FORMATS)
def test_a_vector_is_kept_as_near_as_its_format_allows(form: VectorFormat) -> None:
    for vector in random_vectors(20):
        step = {"f32": 0.0, "f16": 2.0**-11, "int8": float(np.abs(vector).max()) / 127}[form]
        assert np.abs(decode(encode(vector, form), form) - vector).max() <= step / 2 + 1e-9  # rounded, not cut


# Approximate search


def test_many_vectors_are_searched_approximately_and_nearly_as_well(path: Path) -> None:
    pytest.importorskip("usearch", reason="run: pip install 'tripod[ann]'")
    vectors = random_vectors(2000)
    queries = random_vectors(20, 9)

    async def use(store: SqliteStore) -> None:
        for i in range(0, 2000, 100):
            await put(store, f"{i:04}", vectors[i : i + 100], text="a stone among stones" if i < 500 else "a river")
        exact = [await store.search(None, query, k=10) for query in queries]
        exact_hybrid = [await store.search("stones", query, k=10) for query in queries]
        await store.settle()
        stats = await store.stats()
        assert stats is not None
        assert stats.approximate == "HNSW, by usearch, of 2000 vectors"
        found = [await store.search(None, query, k=10) for query in queries]
        assert sum(len({_key(p) for p in a} & {_key(p) for p in b}) for a, b in zip(exact, found, strict=True)) >= 190
        hybrid = [await store.search("stones", query, k=10) for query in queries]
        assert sum(len({_key(p) for p in a} & {_key(p) for p in b}) for a, b in zip(exact_hybrid, hybrid, strict=True)) >= 190
        by_source = await store.search(None, queries[0], k=5, where={"source": "0300"})
        assert [passage.source for passage in by_source] == ["0300"] * 5
        without = await store.search(None, queries[0], k=50, where={"source": {"!=": exact[0][0].source}})
        assert len(without) == 50
        assert exact[0][0].source not in {passage.source for passage in without}

    with_store(path, use, ann_threshold=1000)


def test_an_approximate_search_asks_its_words_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("usearch", reason="run: pip install 'tripod[ann]'")
    monkeypatch.setattr(ann_search, "_SMALL_SHARE", 100)  # so that 3,000 passages are many
    vectors = random_vectors(3000)

    async def use(store: SqliteStore) -> None:
        await put(store, "s", vectors, text="a stone among rivers and trees")
        await store.settle()
        with closing(sqlite3.connect(path)) as connection:
            alone = await quickest(lambda: asyncio.sleep(0, len(fts5.matches(connection, ["stone", "rivers", "trees"])[0])), 3000)
        for vector in (None, vectors[7]):
            for where in (None, {"name": "s"}):
                both = await quickest(lambda vector=vector, where=where: found(store, vector, where), 5)  # type: ignore[misc]
                assert both < 15 * alone  # hundreds of times as long where the words are asked for anew for each passage

    async def found(store: SqliteStore, vector: Vectors | None, where: Where | None) -> int:
        return len(await store.search("stone rivers trees", vector, k=5, where=where))

    async def quickest(search: Callable[[], Coroutine[Any, Any, int]], expected: int) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            assert await search() == expected
            times.append(time.perf_counter() - started)
        return min(times)

    with_store(path, use, ann_threshold=1000)


def test_what_came_after_the_approximate_index_is_found_and_what_went_is_not(path: Path) -> None:
    pytest.importorskip("usearch", reason="run: pip install 'tripod[ann]'")

    async def use(store: SqliteStore) -> None:
        for i in range(80):
            await put(store, f"s{i:02}", random_vectors(25, i))
        await store.settle()
        async with aclosing(SqliteStore(path, pipeline="p", embedder="e")) as reader:
            target = random_vectors(1, 1000)[0]
            await put(store, "s79", target[None])  # the last, so that SQLite gives its ids again
            await store.remove("s00")
            for searcher in (store, reader):
                found = await searcher.search(None, target, k=1)
                assert [(passage.source, round(passage.score or 0, 5)) for passage in found] == [("s79", 1.0)]
                gone = await searcher.search(None, random_vectors(25, 0)[7], k=30)
                assert "s00" not in {passage.source for passage in gone}
            before = list(path.parent.glob("*.usearch"))
            await store.settle()  # 3 % of the passages changed: not worth a new file
            assert list(path.parent.glob("*.usearch")) == before
            for i in range(1, 9):
                await put(store, f"s{i:02}", random_vectors(25, 100 + i))
            await store.settle()
            [after] = path.parent.glob("*.usearch")
            assert [after] != before
            [found_one] = await reader.search(None, random_vectors(25, 105)[3], k=1)  # from the new file
            assert (found_one.source, found_one.score) == ("s05", pytest.approx(1.0, abs=1e-5))
            after.unlink()
            [found_one] = await reader.search(None, random_vectors(25, 105)[3], k=1)
            fresh = SqliteStore(path, pipeline="p", embedder="e")
            assert (
                (await fresh.search(None, random_vectors(25, 105)[3], k=1))[0].source == found_one.source == "s05"
            )  # without any: exactly
            await fresh.aclose()

    with_store(path, use, ann_threshold=1000)


def test_what_the_approximate_index_knows_of_a_replaced_source_takes_no_place(path: Path) -> None:
    pytest.importorskip("usearch", reason="run: pip install 'tripod[ann]'")
    target = random_vectors(1, 1000)[0]
    near = target + 0.05 * random_vectors(30, 7)

    async def use(store: SqliteStore) -> None:
        for i in range(50):
            await put(store, f"s{i:02}", random_vectors(40, i))
        await put(store, "near", target + 0.2 * random_vectors(10, 8))
        await put(store, "last", near / np.linalg.norm(near, axis=1, keepdims=True))
        await store.settle()
        await put(store, "last", -near)  # the last, so that SQLite gives its ids again; now it is far from the target
        assert {passage.source for passage in await store.search(None, target, k=10)} == {"near"}

    with_store(path, use, ann_threshold=1000)


@pytest.mark.parametrize("content", [b"", b"notes", b"of other vectors", None])
def test_a_damaged_approximate_index_is_left_aside_and_repaired(path: Path, content: bytes | None) -> None:
    pytest.importorskip("usearch", reason="run: pip install 'tripod[ann]'")

    async def fill(store: SqliteStore) -> None:
        await put(store, "a", random_vectors(300))
        await store.settle()

    async def look(store: SqliteStore) -> None:
        [file] = path.parent.glob("*.usearch")
        if content == b"of other vectors":
            from usearch.index import Index

            other = Index(ndim=DIM, metric="ip", dtype="f16")
            other.add(np.arange(20), random_vectors(20, 3))
            other.save(str(file))
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
        async with aclosing(SqliteStore(path, pipeline="p", embedder="e", ann_threshold=100)) as reader:
            [found] = await reader.search(None, random_vectors(300)[7], k=1)
            assert found.score == pytest.approx(1.0, abs=1e-6)
            stats = await reader.stats()
            assert stats is not None
            assert stats.approximate is None
            await reader.repair()
            stats = await reader.stats()
            assert stats is not None
            assert stats.approximate == "HNSW, by usearch, of 300 vectors"

    with_store(path, fill, ann_threshold=100)
    with_store(path, look, ann_threshold=100)


def _key(passage: Passage) -> tuple[str, float | None]:
    return passage.source, None if passage.score is None else round(passage.score, 4)


# The file


def test_an_index_of_the_first_version_is_migrated_where_it_lies(path: Path) -> None:
    async def fill(store: SqliteStore) -> None:
        await put(store, "a", random_vectors(1), "東京都知事の会見")
        await put(store, "b", random_vectors(1, 1), "red bees")

    with_store(path, fill)
    with closing(sqlite3.connect(path)) as connection:  # what the second version added, taken away
        connection.executescript("""
            DROP TRIGGER note_addition; DROP TRIGGER note_removal; DROP TABLE changes;
            CREATE TABLE kept AS SELECT rowid AS id, section, text FROM words;
            DROP TABLE words;
            CREATE VIRTUAL TABLE words USING fts5 (section, text, tokenize = 'porter unicode61');
            INSERT INTO words (rowid, section, text) SELECT id, section, text FROM kept;
            DROP TABLE kept; DELETE FROM meta WHERE key = 'vectors'; PRAGMA user_version = 1;
        """)

    async def look(store: SqliteStore) -> None:
        assert [passage.source for passage in await store.search("知事", None, k=9)] == ["a"]
        assert [passage.source for passage in await store.search("bee", random_vectors(1, 1)[0], k=1)] == ["b"]
        await put(store, "c", random_vectors(1, 2))
        assert len(await store.search(None, random_vectors(1)[0], k=9)) == 3
        await store.remove("b")
        assert await store.search("bee", None, k=9) == []
        assert await store.check() == []

    with_store(path, look)


def test_damage_is_found_and_what_can_be_made_anew_is_repaired(path: Path) -> None:
    async def fill(store: SqliteStore) -> None:
        await put(store, "a", random_vectors(1), "red ant")
        await put(store, "b", random_vectors(1, 1), "red bees")

    with_store(path, fill)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "DELETE FROM words WHERE rowid = (SELECT passages.id FROM passages JOIN sources ON sources.id = source_id LIMIT 1)"
        )
        connection.execute("INSERT INTO words (rowid, section, text) VALUES (999, '', 'ghost')")
        connection.commit()

    async def repair(store: SqliteStore) -> None:
        assert await store.check() == [
            "passages without words, which no search by words finds, in: a",
            "words of no passage, by id: 999",
        ]
        await store.repair()
        assert await store.check() == []
        assert [passage.source for passage in await store.search("ant", None, k=9)] == ["a"]

    with_store(path, repair)


def test_a_vector_that_is_missing_or_cut_short_is_found_by_the_check(path: Path) -> None:
    with_store(path, lambda store: put(store, "a", random_vectors(5)))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE passages SET vector = NULL WHERE id = 1")
        connection.execute("UPDATE passages SET vector = x'00' WHERE id = 2")
        connection.commit()

    async def check(store: SqliteStore) -> None:
        assert await store.check() == [
            "passages without a vector in a source that has vectors: a",
            "vectors of another length than most: a",
        ]

    with_store(path, check)
