"""nDCG@10, recall@10 and MRR@10 of our index, next to the peers, on the same texts.

    python -m benchmarks.retrieval.quality [--sets cranfield squad hotpotqa] [--out benchmarks/results]

Ours goes through the public API: `Index.add`, then `Index.search` in each mode. Every text is one passage (checked), because
the judgements are about whole texts. Query vectors are computed in one batch beforehand, which changes nothing but the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

import tripod
from benchmarks.retrieval.judged_sets import SETS, JudgedSet
from benchmarks.retrieval.peers import Rankings, bm25s_rankings, dense_rankings, rrf_rankings, sentence_transformers_vectors
from benchmarks.shared_data import DATA
from tripod.documents import Document
from tripod.evaluation.intervals import Interval, bootstrap
from tripod.evaluation.retrieval_metrics import ndcg, recall, reciprocal_rank
from tripod.protocols import Embedder
from tripod.retrieval.fusion import DENSE_WEIGHT
from tripod.retrieval.index import Index, Mode
from tripod.retrieval.local_embedder import find_default_embedder

K = 10
SEED = 20260101
METRICS = {"ndcg@10": ndcg, "recall@10": recall, "mrr@10": reciprocal_rank}
WHOLE_TEXT = 1_000_000  # tokens of a passage: no text here is cut


class PrecomputedQueries:
    """An `Embedder` that knows the vectors of the queries already, and passes everything else on."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.fingerprint = inner.fingerprint
        self.dim = inner.dim
        self.known: dict[str, NDArray[np.float32]] = {}

    async def learn(self, queries: Sequence[str]) -> None:
        self.known = dict(zip(queries, await self.inner.embed(queries, kind="query"), strict=True))

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> NDArray[np.float32]:
        if kind == "query" and all(text in self.known for text in texts):
            return np.stack([self.known[text] for text in texts])
        return await self.inner.embed(texts, kind=kind)


async def our_rankings(judged: JudgedSet, embedder: PrecomputedQueries) -> dict[str, Rankings]:
    """Our index's rankings by mode."""
    with tempfile.TemporaryDirectory() as folder:
        async with Index(Path(folder) / "kb.db", embedder=embedder, max_passage_tokens=WHOLE_TEXT) as index:
            await index.add(Document(source=name, text=text) for name, text in judged.documents.items())
            await embedder.learn(list(judged.queries.values()))
            rankings: dict[str, Rankings] = {}
            for mode in get_args(Mode):
                found = {query: await index.search(text, K, mode) for query, text in judged.queries.items()}
                for passage in (passage for passages in found.values() for passage in passages):
                    assert passage.text == judged.documents[passage.source].strip(), f"{passage.source} was cut"
                rankings[mode] = {query: [passage.source for passage in passages] for query, passages in found.items()}
            return rankings


def peer_vectors(judged: JudgedSet, folder: Path, cache: Path | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """sentence-transformers' vectors of the texts and of the queries; of an earlier run, if `cache` has them."""
    kept = cache / f"{judged.name}.npz" if cache else None
    if kept is not None and kept.exists():
        with np.load(kept) as arrays:
            return arrays["E"], arrays["Q"]
    documents = sentence_transformers_vectors(folder, list(judged.documents.values()))
    queries = sentence_transformers_vectors(folder, list(judged.queries.values()))
    if kept is not None:
        np.savez(kept, E=documents, Q=queries)
    return documents, queries


def values(judged: JudgedSet, rankings: Rankings, metric: str) -> list[float]:
    """One value a query."""
    return [METRICS[metric](rankings[query][:K], judged.gains[query], K) for query in judged.queries]


def measure(judged: JudgedSet, cache: Path | None) -> dict[str, dict[str, Interval]]:
    """Method -> metric -> mean and interval; and, for the hybrid, its difference from our better half."""
    embedder, reason = find_default_embedder()
    if embedder is None:
        raise SystemExit(f"no embedder: {reason}")
    ours = tripod.run(our_rankings(judged, PrecomputedQueries(embedder)))
    lexical = bm25s_rankings(judged)
    documents, queries = peer_vectors(judged, embedder.folder, cache)
    dense = dense_rankings(judged, documents, queries)
    methods = {f"tripod {mode}": rankings for mode, rankings in ours.items()} | {
        "bm25s + stemmer": lexical,
        "sentence-transformers": dense,
        f"RRF of the two peers, depth {len(next(iter(dense.values())))}": rrf_rankings(lexical, dense),
    }
    table = {
        name: {metric: bootstrap(values(judged, rankings, metric), np.random.default_rng(SEED)) for metric in METRICS}
        for name, rankings in methods.items()
    }
    better = max(("bm25", "dense"), key=lambda mode: table[f"tripod {mode}"]["ndcg@10"].mean)
    table[f"tripod hybrid - {better}, paired"] = {
        metric: bootstrap(
            np.subtract(values(judged, ours["hybrid"], metric), values(judged, ours[better], metric)).tolist(),
            np.random.default_rng(SEED),
        )
        for metric in METRICS
    }
    return table


def markdown(sets: dict[str, JudgedSet], results: dict[str, dict[str, dict[str, Interval]]], circumstances: dict[str, object]) -> str:
    """The tables, with what one must know to read them."""
    lines = [
        "# Retrieval quality",
        "",
        "Mean over queries [95 % bootstrap interval over queries]. `python -m benchmarks.retrieval.quality`",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in circumstances.items()]
    for name, table in results.items():
        judged = sets[name]
        lines += ["", f"## {name}: {len(judged.documents)} texts, {len(judged.queries)} queries", ""]
        lines += [f"| method | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
        for method, row in table.items():
            cells = [f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in row.values()]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the peer's vectors, which take most of the time")
    arguments = parser.parse_args()
    # Before the work: what is checked out may change while it runs.
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    kept = sorted(name for name in arguments.sets if arguments.cache and (arguments.cache / f"{name}.npz").exists())
    sets = {name: SETS[name](arguments.data) for name in arguments.sets}
    results = {name: measure(judged, arguments.cache) for name, judged in sets.items()}
    packages = ("torch", "sentence-transformers", "bm25s", "PyStemmer", "numpy")
    circumstances: dict[str, object] = {
        "commit": described.stdout.strip() or "unknown",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "fusion": f"dense weight {DENSE_WEIGHT}, chosen on cranfield (docs/decisions/0002-fusion.md tells what was seen when)",
        "sentence-transformers' vectors": f"of an earlier run, for {', '.join(kept)}" if kept else "computed in this run",
        "cranfield rule": "grades 1 to 4 relevant, -1 not",
        "seed": SEED,
    }
    text = markdown(sets, results, circumstances)
    arguments.out.mkdir(parents=True, exist_ok=True)
    raw = {name: {method: {m: asdict(cell) for m, cell in row.items()} for method, row in table.items()} for name, table in results.items()}
    (arguments.out / "retrieval_quality.json").write_text(json.dumps({"circumstances": circumstances, "results": raw}, indent=1) + "\n")
    (arguments.out / "retrieval_quality.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
