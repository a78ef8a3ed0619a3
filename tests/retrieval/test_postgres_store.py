"""The store on a PostgreSQL server: the contract of all stores, and what is its own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import get_args

import anyio
import numpy as np
import psycopg
import pytest
from benchmarks.campaigns.hash_embedder import HashEmbedder

import tripod
from tests.retrieval.postgres_server import fresh_index
from tripod.documents import Document, Passage, SourceState
from tripod.errors import ConfigError, StoreError
from tripod.protocols import Store
from tripod.retrieval import postgres_words
from tripod.retrieval.index import Index, Mode
from tripod.retrieval.postgres_store import PostgresStore
from tripod.retrieval.sqlite_store import SqliteStore
from tripod.testing.store import EMBEDDER, StoreContract


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def server(self, postgres: str) -> None:
        self.address = postgres

    @asynccontextmanager
    async def open_store(self, embedder: str | None = EMBEDDER) -> AsyncIterator[Store]:
        async with aclosing(await PostgresStore.open(fresh_index(self.address), pipeline="p", embedder=embedder)) as store:
            yield store


def document(name: str, text: str = "stone") -> tuple[Document, list[Passage]]:
    return Document(source=name, text=text), [Passage(source=name, start=0, end=len(text), text=text)]


VECTOR = np.array([[0.6, 0.8, 0.0]], dtype=np.float32)
STATE = SourceState(digest="d")


def test_two_that_open_one_blank_schema_make_one_index(postgres: str) -> None:
    address = fresh_index(postgres)

    async def go() -> None:
        stores = [await PostgresStore.open(address, pipeline="p", embedder="e") for _ in range(4)]
        async with anyio.create_task_group() as group:
            for i, store in enumerate(stores):
                group.start_soon(store.replace, *document(f"s{i}"), VECTOR, STATE)
        assert [list(await store.sources()) for store in stores] == [["s0", "s1", "s2", "s3"]] * 4
        assert await stores[0].check() == []
        for store in stores:
            await store.aclose()

    tripod.run(go())


def test_the_first_vectors_decide_whose_schema_it_is(postgres: str) -> None:
    address = fresh_index(postgres)

    async def go() -> None:
        async with (
            aclosing(await PostgresStore.open(address, pipeline="p", embedder="first")) as first,
            aclosing(await PostgresStore.open(address, pipeline="p", embedder="second")) as second,
        ):
            await first.replace(*document("words"), None, STATE)
            assert list(await second.sources()) == ["words"]  # while it held no vectors
            await first.replace(*document("a"), VECTOR, STATE)
            with pytest.raises(StoreError, match="made with the embedder 'first', and is opened with 'second'"):
                await second.replace(*document("b"), VECTOR, STATE)
            assert list(await first.sources()) == ["a", "words"]

    tripod.run(go())


def test_an_index_of_others_is_refused_with_both_names(postgres: str) -> None:
    address = fresh_index(postgres)

    async def go() -> None:
        async with (
            aclosing(await PostgresStore.open(address, pipeline="p", embedder="e")) as first,
            aclosing(await PostgresStore.open(address, pipeline="p", embedder="f")) as second,
        ):
            await first.replace(*document("a"), VECTOR, STATE)
            with pytest.raises(StoreError, match="made with the embedder 'e', and is opened with 'f'"):
                await second.replace(*document("b"), VECTOR, STATE)
            with pytest.raises(StoreError, match="made with the embedder 'e', and is opened with 'f'"):
                await second.search(None, VECTOR[0], k=1)
            assert len(await second.search("stone", None, k=1)) == 1  # words need no embedder
        for options, message in [
            ({"pipeline": "q", "embedder": "e"}, "made with the pipeline 'p'"),
            ({"pipeline": "p", "embedder": "f"}, "made with the embedder 'e'"),
            ({"pipeline": "p", "embedder": "e", "vectors": "f16"}, "made with the vectors 'f32'"),
        ]:
            with pytest.raises(StoreError, match=message):
                await PostgresStore.open(address, **options)

    tripod.run(go())


def test_an_index_of_a_newer_version_is_refused(postgres: str) -> None:
    address = fresh_index(postgres)
    server, _, schema = address.partition("#")

    async def go() -> None:
        async with aclosing(await PostgresStore.open(address, pipeline="p", embedder=None)) as store:
            await store.replace(*document("a"), None, STATE)
        with psycopg.connect(server) as connection:
            connection.execute(f"UPDATE {schema}.meta SET value = '99' WHERE key = 'version'")
        with pytest.raises(StoreError, match="newer Tripod"):
            await PostgresStore.open(address, pipeline="p", embedder=None)

    tripod.run(go())


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("postgresql://somebody:secret@localhost:1/nothing", StoreError, r"somebody:\*\*\*@localhost:1/nothing cannot be opened"),
        ("postgresql://localhost/x#Bad-Name", ConfigError, "no plain name"),
    ],
)
def test_an_address_that_cannot_be_is_refused_without_telling_the_password(address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        tripod.run(PostgresStore.open(address, pipeline="p", embedder=None))
    assert "secret" not in str(caught.value)


def test_vectors_that_pgvector_does_not_keep_are_refused(postgres: str) -> None:
    with pytest.raises(StoreError, match='no vectors="int8"'):
        tripod.run(PostgresStore.open(fresh_index(postgres), pipeline="p", embedder="e", vectors="int8"))


def test_half_precision_gives_nearly_the_same_scores(postgres: str) -> None:
    async def go() -> None:
        async with aclosing(await PostgresStore.open(fresh_index(postgres), pipeline="p", embedder="e", vectors="f16")) as store:
            await store.replace(*document("a"), VECTOR, STATE)
            [found] = await store.search(None, VECTOR[0], k=1)
            assert found.score == pytest.approx(1.0, abs=1e-3)
            assert found.score != pytest.approx(1.0, abs=1e-6)

    tripod.run(go())


def test_many_vectors_get_an_hnsw_index_that_finds_nearly_all(postgres: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    async def go() -> None:
        async with aclosing(await PostgresStore.open(fresh_index(postgres), pipeline="p", embedder="e")) as store:
            store.ann_threshold = 500
            for i in range(6):
                text = "\n".join(["stone"] * 100)
                passages = [Passage(source=f"s{i}", start=6 * j, end=6 * j + 5, text="stone") for j in range(100)]
                await store.replace(Document(source=f"s{i}", text=text), passages, vectors[100 * i : 100 * i + 100], STATE)
            exact = [await store.search(None, query, k=10) for query in vectors[::60]]
            await store.settle()
            stats = await store.stats()
            assert stats is not None
            assert stats.approximate == "HNSW, by pgvector"
            found = [await store.search(None, query, k=10) for query in vectors[::60]]
            assert sum(len({p.id for p in a} & {p.id for p in b}) for a, b in zip(exact, found, strict=True)) >= 98
            only = await store.search(None, vectors[0], k=10, where={"source": "s5"})
            assert {passage.source for passage in only} == {"s5"}
            assert len(only) == 10

    tripod.run(go())


def test_bm25_of_many_matches_is_that_of_the_file(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_words, "_SCORED", 20)  # so that the choice of what is scored matters here
    generator = random.Random(3)
    texts = [" ".join(generator.choices(["common", "often", "some", "rare", "x1"], [60, 30, 8, 2, 1], k=12)) for _ in range(200)]
    texts[5:200:70] = [f"{text} x2" for text in texts[5:200:70]]  # in three, so that "common" has to be looked at too

    async def go() -> None:
        server = await PostgresStore.open(fresh_index(postgres), pipeline="p", embedder=None)
        file = SqliteStore(tmp_path / "kb.db", pipeline="p", embedder=None)
        for store in (server, file):
            for i, text in enumerate(texts):
                await store.replace(*document(f"{i:03}", text), None, STATE)
        for question in ("rare", "rare some", "x1 common", "x2 common", "rare some common often", "snake_case rare"):
            ours, theirs = await server.search(question, None, k=10), await file.search(question, None, k=10)
            assert [passage.score for passage in ours] == pytest.approx([passage.score for passage in theirs], abs=1e-5), question
        await server.aclose()
        await file.aclose()

    tripod.run(go())


def test_damage_is_found_and_repaired(postgres: str) -> None:
    address = fresh_index(postgres)
    server, _, schema = address.partition("#")

    async def go() -> None:
        async with aclosing(await PostgresStore.open(address, pipeline="p", embedder=None)) as store:
            await store.replace(*document("a", "red ant"), None, STATE)
            await store.replace(*document("b", "red bee"), None, STATE)
            with psycopg.connect(server) as connection:
                connection.execute(f"UPDATE {schema}.passages SET words = ''::tsvector WHERE text = 'red ant'")
                connection.execute(f"UPDATE {schema}.totals SET num_passages = 7")
            assert len(await store.check()) == 2
            await store.repair()
            assert await store.check() == []
            assert [passage.source for passage in await store.search("ant", None, k=9)] == ["a"]

    tripod.run(go())


def test_a_user_moves_from_a_file_to_a_server_by_the_address_alone(postgres: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "lock.md").write_text("# Locks\n\nA mutex is freed by its owner.")
    (docs / "pool.md").write_text("# Pools\n\nBlocks return to the pool, 東京都知事.")

    async def work(location: str) -> list[object]:
        seen: list[object] = []
        async with Index(location, embedder=HashEmbedder()) as index:
            seen.append(await index.sync(docs))
            seen.append(await index.sync(docs))
            await index.add([Document(source="memo", text="quartz", metadata={"year": 2024})])
            for mode in get_args(Mode):
                for question in ("owner of a mutex", "知事", "quartz blocks"):
                    found = await index.search(question, mode=mode)
                    seen += [(p.id, p.text, round(p.score or 0, 5)) for p in found]
            seen.append([p.id for p in await index.search("quartz", where={"year": {">": 2000}})])
            seen.append(await index.count(["mutex", "block", "quartz"]))
            seen.append((await index.document("lock.md"), await index.sources(), index.mode_note))
        return seen

    in_file, on_server, in_memory = (tripod.run(work(where)) for where in (str(tmp_path / "kb.db"), fresh_index(postgres), ":memory:"))
    assert in_file == on_server == in_memory
