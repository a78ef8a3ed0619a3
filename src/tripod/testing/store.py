"""What every Store must do. Subclass it as `class TestMine(StoreContract)` and say how to open one."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import numpy as np

from tripod.documents import Document, Line, Metadata, Page, Passage, Scalar, Section, SourceState
from tripod.errors import RequestError, StoreError
from tripod.filters import MAX_CONDITIONS, F, Filter, Where, matches, parse
from tripod.protocols import Store

if TYPE_CHECKING:
    from tripod.protocols import Vectors

EMBEDDER = "three directions"
_STATE = SourceState(digest="d", root="/docs", size=3, mtime_ns=1_700_000_000_123_456_789)


class StoreContract:
    """Tests without a framework: methods that assert."""

    def open_store(self, embedder: str | None = EMBEDDER) -> AbstractAsyncContextManager[Store]:
        """A fresh, blank store."""
        raise NotImplementedError

    def test_a_blank_store_holds_nothing_and_says_that_it_cannot_be_searched(self) -> None:
        async def look(store: Store) -> None:
            assert await store.stats() is None
            assert await store.sources() == {}
            assert await store.document("a") is None
            assert await store.read("a") is None
            assert await store.count(["stone"]) == [0]
            assert await store.check() == []
            assert "there is no index" in await _refusal(store.search("stone", None, k=1), StoreError)

        self._run(look)

    def test_a_source_comes_back_as_it_was_given(self) -> None:
        paged = Document(
            source="ä/ 1.pdf",
            text="one\n\n𝔘wo\0 \ufdd0",
            title="T\0",
            pages=(Page(1, 0, 3), Page(2, 5, 8)),
            metadata={"year": 2024, "draft": False, "x": 0.1, "large": 2**60, "name": 'a\0"\\', "": "", "text": "2024-01-01"},
        )
        lined = Document(source="b.html", text="one two", sections=(Section(4, 7, "S"),), lines=(Line(0, 3), Line(4, 9)))
        vectors = np.array([[0.1, -0.2, 1 / 3], [1e-30, 1.0, 3e-5]], dtype=np.float32)

        async def keep(store: Store) -> None:
            passages = [paged.passage(0, 3, page=1), paged.passage(5, 11, page=2, section="§\0")]
            await store.replace(paged, passages, vectors, _STATE)
            await store.replace(lined, [lined.passage(4, 7, line=9)], None, SourceState(digest="e"))
            stored = await store.read(paged.source)
            assert stored is not None
            assert stored.document == paged
            assert dict(stored.document.metadata) == dict(paged.metadata)
            assert {name: type(value) for name, value in stored.document.metadata.items()} == {
                name: type(value) for name, value in paged.metadata.items()
            }
            assert stored.passages == tuple(passages)
            assert stored.vectors is not None
            assert stored.vectors.tobytes() == vectors.tobytes()
            assert stored.state == SourceState(digest="d", root="/docs", size=3, mtime_ns=1_700_000_000_123_456_789, is_embedded=True)
            assert await store.document("b.html") == lined
            without = await store.read("b.html")
            assert without is not None
            assert without.vectors is None
            states = await store.sources()
            assert list(states) == ["b.html", "ä/ 1.pdf"]
            assert states["b.html"] == SourceState(digest="e")
            stats = await store.stats()
            assert stats is not None
            assert (stats.num_sources, stats.num_passages, stats.num_vectors, stats.num_unembedded) == (2, 3, 2, 1)
            assert (stats.dim, stats.embedder) == (3, EMBEDDER)

        self._run(keep)

    def test_a_source_is_replaced_and_removed_wholly(self) -> None:
        async def change(store: Store) -> None:
            await _put(store, "a", "red ant", "red bee", "red cat")
            await _put(store, "b", "red dog")
            await _put(store, "a", "blue elk")
            assert [passage.text for passage in await store.search("red", None, k=9)] == ["red dog"]
            assert await store.count(["red", "blue", "ant"]) == [1, 1, 0]
            await store.remove("a")
            await store.remove("never there")
            assert list(await store.sources()) == ["b"]
            assert await store.search("blue", None, k=9) == []
            assert [passage.source for passage in await store.search(None, _unit(1, 0, 0), k=9)] == ["b"]

        self._run(change)

    def test_what_is_found_says_where_it_stands(self) -> None:
        document = Document(source="a.pdf", text="one\n\ntwo stones", pages=(Page(1, 0, 3), Page(2, 5, 15)), metadata={"year": 2024})

        async def look(store: Store) -> None:
            passages = [document.passage(0, 3, page=1), document.passage(5, 15, page=2, section="S")]
            await store.replace(document, passages, None, _STATE)
            [found] = await store.search("stone", None, k=9)
            assert (found.source, found.start, found.end, found.text, found.page, found.section) == ("a.pdf", 5, 15, "two stones", 2, "S")
            assert found.metadata == {"year": 2024}
            assert found.score is not None

        self._run(look)

    def test_bm25_scores_by_hand(self) -> None:
        # Each of four passages has the average length. A word in one of them has idf = ln((4 - 1 + .5) / (1 + .5)) and, standing there
        # once, tf * 2.2 / (tf + 1.2) = 1. One in two of them has ln(1) = 0, which is raised to 1e-6.
        async def look(store: Store) -> None:
            await _put_all(store, "red ant", "red bee", "cat dog", "elk fox")
            [best] = await store.search("bees", None, k=9)  # stemmed
            assert best.source == "1"
            _near(best.score, math.log(3.5 / 1.5), 1e-4)
            assert [passage.source for passage in await store.search("red bee", None, k=9)] == ["1", "0"]
            assert [passage.source for passage in await store.search("red bee", None, k=1)] == ["1"]
            assert await store.search("unheard", None, k=9) == []

        self._run(look)

    def test_bm25_weighs_repetition_and_length_by_hand(self) -> None:
        # Lengths 4, 2, 2: 8/3 on average. idf of a word in one of three: ln(2.5 / 1.5).
        async def look(store: Store) -> None:
            await _put_all(store, "bee bee bee ant", "cat dog", "elk fox")
            [best] = await store.search("bee", None, k=9)
            _near(best.score, math.log(2.5 / 1.5) * 3 * 2.2 / (3 + 1.2 * (0.25 + 0.75 * 4 / (8 / 3))), 1e-4)

        self._run(look)

    def test_the_section_is_searched_like_the_text(self) -> None:
        document = Document(source="a", text="a passage of its own")

        async def look(store: Store) -> None:
            await store.replace(document, [document.passage(0, 20, section="Mutexes and locks")], None, _STATE)
            assert len(await store.search("mutex", None, k=1)) == 1

        self._run(look)

    def test_dense_scores_are_dot_products_in_their_order(self) -> None:
        generator = np.random.default_rng(0)
        vectors = generator.normal(size=(50, 3)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        query = _unit(0.6, 0.0, 0.8)
        expected = (vectors.astype(np.float64) @ query.astype(np.float64)).round(12)

        async def look(store: Store) -> None:
            for i, vector in enumerate(vectors):
                document = Document(source=f"{i:02}", text="stone")
                await store.replace(document, [document.passage(0, 5)], vector[None], _STATE)
            found = await store.search(None, query, k=12)
            assert [passage.source for passage in found] == [f"{i:02}" for i in np.argsort(-expected)[:12]]
            for passage, score in zip(found, sorted(expected, reverse=True)[:12], strict=True):
                _near(passage.score, score, 1e-6)

        self._run(look)

    def test_a_hybrid_score_by_hand(self) -> None:
        # Of "bee" and "fly", one passage of four holds "bee": BM25 is its idf. At most it could be 2.2 times that for "bee" and
        # 2.2 ln(4.5 / 0.5) for "fly". Half of that share and half of the cosine are the score.
        async def look(store: Store) -> None:
            await _put_all(store, "red ant", "red bee", "cat dog", "elk fox")  # vectors along (1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0)
            found = await store.search("bee fly", _unit(1, 0, 0), k=9)
            share = math.log(3.5 / 1.5) / (2.2 * (math.log(3.5 / 1.5) + math.log(4.5 / 0.5)))
            expected = {"0": 0.5, "1": 0.5 * share + 0.5 / math.sqrt(2), "2": 0.5 / math.sqrt(5), "3": 0.5 / math.sqrt(10)}
            assert [passage.source for passage in found] == sorted(expected, key=lambda source: -expected[source])
            for passage in found:
                _near(passage.score, expected[passage.source], 1e-5)

        self._run(look)

    def test_equal_scores_are_ordered_by_place_whatever_the_order_of_writing(self) -> None:
        async def look(store: Store) -> None:
            for source in ("c", "a", "d", "b"):
                await _put(store, source, "same words", "same words")
            for found in (
                await store.search("same", None, k=5),
                await store.search(None, _unit(1, 0, 0), k=5),
                await store.search("same", _unit(1, 0, 0), k=5),
            ):
                assert len({passage.score for passage in found}) == 1
                assert [(passage.source, passage.start) for passage in found] == [("a", 0), ("a", 11), ("b", 0), ("b", 11), ("c", 0)]

        self._run(look)

    def test_a_question_is_never_syntax(self) -> None:
        async def look(store: Store) -> None:
            await _put(store, "a", "a stone")
            for question in (
                '" OR section : *',
                "NEAR(a b, 2) ^ - + { } a* \"b AND NOT c'; --",
                "_ \0 ﷺ İ ß 𝔘",
                "a & b | !c:* <-> d",
                "()",
                "'",
            ):
                assert await store.search(question, None, k=1) == []
            assert len(await store.search("stone:* & 'x'", None, k=1)) == 1

        self._run(look)

    def test_words_within_a_run_of_characters_are_found(self) -> None:
        async def look(store: Store) -> None:
            await _put_all(store, "東京都知事の会見", "京都の寺", "飲料水とPython入門", "서울특별시")
            for question, expected in {"知事": "0", "京都": "01", "水": "2", "入門": "2", "python": "2", "특별": "3", "大阪": ""}.items():
                assert "".join(sorted(passage.source for passage in await store.search(question, None, k=9))) == expected, question
            assert await store.count(["東京都", "京都", "都知事", "寺会"]) == [1, 2, 1, 0]

        self._run(look)

    def test_words_are_counted_in_all_their_forms(self) -> None:
        async def look(store: Store) -> None:
            await _put_all(store, "red ants, red ant", "red bee", "cat", "the and")
            words = ["bees", "ant", "red", "dog", "the", "?", '"x" OR red', "RED", "snake_case"]
            assert await store.count(words) == [1, 1, 2, 0, 1, 0, 2, 2, 0]
            await _put(store, "x", "a snake_case name, Café au lait")
            assert await store.count(["snake", "case", "snake_case", "cafe", "café"]) == [1, 1, 1, 1, 1]

        self._run(look)

    def test_filters_mean_what_they_say(self) -> None:
        async def look(store: Store) -> None:
            await _put_documents(store, FILTERED)
            for where, expected in FILTERS:
                condition = parse(where)
                by_definition = "".join(source for source, metadata in FILTERED.items() if matches(condition, source, metadata))
                assert by_definition == expected, where
                assert "".join(await store.sources(where)) == expected, where
                for text, vector in (("stone", None), (None, _unit(1, 0, 0)), ("stone", _unit(1, 0, 0))):
                    found = await store.search(text, vector, k=99, where=where)
                    assert "".join(sorted(passage.source for passage in found)) == expected, where

        self._run(look)

    def test_random_filters_agree_with_their_definition(self) -> None:
        generator = random.Random(7)

        async def look(store: Store) -> None:
            documents = {f"s{i}": _random_metadata(generator) for i in range(40)}
            await _put_documents(store, documents)
            for _ in range(150):
                wanted = _random_filter(generator, 3)
                expected = sorted(source for source, metadata in documents.items() if matches(wanted, source, metadata))
                found = await store.search("stone", None, k=99, where=wanted)
                assert sorted(passage.source for passage in found) == expected, wanted

        self._run(look)

    def test_as_many_conditions_as_are_allowed_can_be_asked(self) -> None:
        async def look(store: Store) -> None:
            await _put_all(store, "red stone", "grey stone")
            many = [{"source": {"contains": str(i)}} for i in range(1, MAX_CONDITIONS + 1)]
            for where, expected in (({"or": many}, "1"), ({"and": [{"not": one} for one in many]}, "0")):
                assert [passage.source for passage in await store.search("stone", _unit(1, 0, 0), k=9, where=where)] == [expected]

        self._run(look)

    def test_a_filter_that_cannot_be_is_refused_before_anything_is_asked(self) -> None:
        async def refuse(store: Store) -> None:
            await _put(store, "a", "stone")
            for where in REFUSED_FILTERS:
                assert "where[" in await _refusal(store.search("stone", None, k=1, where=where), RequestError)

        self._run(refuse)

    def test_vectors_need_the_name_of_their_embedder(self) -> None:
        async def refuse(store: Store) -> None:
            document = Document(source="a", text="stone")
            write = store.replace(document, [document.passage(0, 5)], _unit(1, 0, 0)[None], _STATE)
            assert "without an embedder's fingerprint" in await _refusal(write, StoreError)
            assert await store.sources() == {}

        self._run(refuse, embedder=None)

    def test_a_source_without_passages_is_kept(self) -> None:
        async def keep(store: Store) -> None:
            await store.replace(Document(source="empty", text=""), [], np.zeros((0, 3), dtype=np.float32), _STATE)
            assert list(await store.sources()) == ["empty"]
            assert await store.search("stone", _unit(1, 0, 0), k=3) == []
            stored = await store.read("empty")
            assert stored is not None
            assert stored.passages == ()

        self._run(keep)

    def test_a_sound_store_has_nothing_to_repair_and_a_repair_changes_nothing(self) -> None:
        async def repair(store: Store) -> None:
            await _put_all(store, "red ant", "red bee", "東京都知事", "elk fox")
            before = [await store.search(text, vector, k=9) for text in ("bees", "知事") for vector in (None, _unit(1, 0, 0))]
            assert await store.check() == []
            await store.repair()
            await store.settle()
            assert await store.check() == []
            assert [await store.search(text, vector, k=9) for text in ("bees", "知事") for vector in (None, _unit(1, 0, 0))] == before

        self._run(repair)

    def test_a_search_during_writes_sees_every_source_old_or_new(self) -> None:
        async def look(store: Store) -> None:
            for i in range(10):
                await _put(store, f"f{i}", *[f"old stone {part}" for part in range(3)])
            half, looked, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
            views: set[str] = set()

            async def write() -> None:
                for i in range(10):
                    await _put(store, f"f{i}", *[f"new stone {part}" for part in range(3)])
                    if i == 5:
                        half.set()
                        await looked.wait()
                done.set()

            async def read() -> None:
                while not done.is_set():
                    is_half = half.is_set()
                    found = await store.search("stone", _unit(1, 0, 0), k=99)
                    if is_half:
                        looked.set()
                    versions: dict[str, set[str]] = {}
                    for passage in found:
                        versions.setdefault(passage.source, set()).add(passage.text[:3])
                    assert len(found) == 30
                    assert all(len(seen) == 1 for seen in versions.values())
                    views.add("".join(sorted(set().union(*versions.values()))))

            async with asyncio.TaskGroup() as group:
                group.create_task(read())
                group.create_task(write())
            assert "newold" in views  # it did look while the writing was half done

        self._run(look)

    def _run(self, check: Callable[[Store], Awaitable[None]], embedder: str | None = EMBEDDER) -> None:
        async def opened() -> None:
            async with self.open_store(embedder) as store:
                await check(store)

        asyncio.run(opened())


FILTERED: Mapping[str, Metadata] = {
    "a": {"year": 2024, "draft": True, "lang": "en", "day": "2024-03-01"},
    "b": {"year": 2025, "draft": False, "day": "2024-03-01T12:00:00"},
    "c": {"year": "2024", "draft": 1, "day": "2024-03-01T12:00:00+02:00"},
    "d": {"year": 2024.5, "lang": "de", "day": "yesterday"},
    "e": {"lang": "english (en)", 'odd "name': "it's \\ 100%_", "day": 20240301},
}
FILTERS: Sequence[tuple[Where, str]] = [
    ({}, "abcde"),
    ({"year": 2024}, "a"),
    ({"year": 2024.0}, "a"),
    ({"year": [2024, 2025]}, "ab"),
    ({"year": ["2024", 2025]}, "bc"),
    ({"draft": True}, "a"),
    ({"draft": 1}, "c"),
    ({"draft": [False, 1]}, "bc"),
    ({"lang": "en"}, "a"),
    ({"lang": "en", "year": 2025}, ""),
    ({"nothing": 1}, ""),
    ({"source": ["a", "c"]}, "ac"),
    ({"source": {"!=": "a"}}, "bcde"),
    ({"source": [*map(str, range(2000)), "b"]}, "b"),
    ({"year": [*range(2000), 2025]}, "b"),
    ({"year": 10**30}, ""),
    ({"year": {"<": 10**30}}, "abd"),
    ({"year": {"==": 2024}}, "a"),
    ({"year": {"!=": 2024}}, "bcde"),
    ({"year": {"in": [2024, 2024.5]}}, "ad"),
    ({"year": {"not in": [2024, 2025]}}, "cde"),
    ({"year": {">": 2024}}, "bd"),
    ({"year": {">=": 2024, "<": 2025}}, "ad"),
    ({"year": {"<=": 2024.5}}, "ad"),
    ({"draft": {">": 0}}, "c"),
    ({"lang": {"contains": "en"}}, "ae"),
    ({"year": {"contains": "02"}}, "c"),
    ({"lang": {"contains": "EN"}}, ""),
    ({'odd "name': {"contains": "s \\ 100%_"}}, "e"),
    ({'odd "name': "it's \\ 100%_"}, "e"),
    ({"source": {"contains": "a"}}, "a"),
    ({"lang": {"exists": True}}, "ade"),
    ({"lang": {"exists": False}}, "bc"),
    ({"source": {"exists": True}}, "abcde"),
    ({"day": {">=": "2024-03-01T12:00:00"}}, "b"),
    ({"day": {"<": "2024-03-01T12:00:00"}}, "ac"),
    ({"day": {">": "2024-03-01"}}, "bc"),
    ({"day": {"<=": "2024-03-01T10:00:00Z"}}, "ac"),
    ({"day": date(2024, 3, 1)}, "a"),
    ({"day": [datetime(2024, 3, 1, 10, tzinfo=UTC), 20240301]}, "ce"),
    ({"or": [{"year": 2024}, {"lang": "de"}]}, "ad"),
    ({"and": [{"year": {">": 2000}}, {"or": [{"draft": True}, {"lang": "de"}]}]}, "ad"),
    ({"not": {"lang": {"exists": True}}, "year": 2025}, "b"),
    ({"not": {"or": [{"year": {">": 0}}, {"not": {"lang": {"contains": "e"}}}]}}, "e"),
    ((F("year") >= 2024) & ~(F("lang") == "de"), "ab"),
    (F("lang").is_in(["en", "de"]) | (F("day") != "yesterday"), "abcde"),
    (F("lang").contains("(en)") | ~F("lang").exists(), "bce"),
    ({"lang": "\ud800", "\ud800": 1}, ""),
    ({"\ud800": {"!=": 1}}, "abcde"),
    ({'x" OR 1=1 --': "'; DROP TABLE sources"}, ""),
]
REFUSED_FILTERS: Sequence[Mapping[str, object]] = [
    {"year": None},
    {"year": []},
    {"year": [None]},
    {"year": {}},
    {"year": {"gt": 3}},
    {"year": {"==": None}},
    {"year": {"in": "abc"}},
    {"year": {"<": "soon"}},
    {"year": {"<": True}},
    {"year": {">": [1]}},
    {"year": {"contains": 3}},
    {"year": {"exists": 1}},
    {"year": float("nan")},
    {"year": {"<": float("inf")}},
    {"or": []},
    {"and": [{"year": {"gt": 3}}]},
]

_FIELDS = ("n", "t", "m", "source", "absent")
_VALUES: tuple[Scalar, ...] = (
    0,
    1,
    2,
    1.5,
    -3,
    True,
    False,
    "",
    "1",
    "x",
    "xy",
    "2024-01-01",
    "2024-01-01T06:00:00+01:00",
    "2023-12-31",
    "s1",
    2**53 + 1,
)


def _random_metadata(generator: random.Random) -> Metadata:
    return {field: generator.choice(_VALUES) for field in ("n", "t", "m") if generator.random() < 0.8}


def _random_filter(generator: random.Random, depth: int) -> Filter:
    kind = generator.choice(["and", "or", "not", "leaf"]) if depth else "leaf"
    if kind in ("and", "or"):
        left, right = _random_filter(generator, depth - 1), _random_filter(generator, depth - 1)
        return left & right if kind == "and" else left | right
    if kind == "not":
        return ~_random_filter(generator, depth - 1)
    field = F(generator.choice(_FIELDS))
    values = generator.sample(_VALUES, 2)
    orderable: tuple[Scalar, ...] = (0, 1, 1.5, "2024-01-01", "2024-01-01T05:00:00")
    ordered = generator.choice(orderable)
    leaves: list[Callable[[], Filter]] = [
        lambda: field == values[0],
        lambda: field != values[0],
        lambda: field.is_in(values),
        lambda: field < ordered,
        lambda: field <= ordered,
        lambda: field > ordered,
        lambda: field >= ordered,
        lambda: field.contains(generator.choice(("x", "20", ""))),
        lambda: field.exists(),
    ]
    return generator.choice(leaves)()


def _unit(*values: float) -> Vectors:
    vector = np.array(values, dtype=np.float32)
    unit: Vectors = vector / np.linalg.norm(vector)
    return unit


async def _put(store: Store, source: str, *texts: str, height: float = 0.0) -> None:
    """A source with a passage a text, all with a vector along (1, height, 0)."""
    document = Document(source=source, text="\n".join(texts))
    passages: list[Passage] = []
    start = 0
    for text in texts:
        passages.append(document.passage(start, start + len(text)))
        start += len(text) + 1
    await store.replace(document, passages, np.stack([_unit(1, height, 0)] * len(texts)), _STATE)


async def _put_all(store: Store, *texts: str) -> None:
    """Sources "0", "1", ... of one passage each."""
    for i, text in enumerate(texts):
        await _put(store, str(i), text, height=float(i))


async def _put_documents(store: Store, documents: Mapping[str, Metadata]) -> None:
    for source, metadata in documents.items():
        document = Document(source=source, text="stone", metadata=metadata)
        await store.replace(document, [document.passage(0, 5)], _unit(1, 0, 0)[None], _STATE)


async def _refusal(call: Awaitable[object], kind: type[Exception]) -> str:
    """What a call says that must fail with an error of this kind."""
    try:
        await call
    except kind as error:
        return str(error)
    raise AssertionError(f"it was not refused with a {kind.__name__}")


def _near(score: float | None, expected: float, tolerance: float) -> None:
    assert score is not None
    assert abs(score - expected) <= tolerance, (score, expected)
