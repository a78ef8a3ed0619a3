"""Our hybrid search beside LangChain's, LlamaIndex' and Haystack's: the same texts, the same encoder, taking turns.

    python -m benchmarks.retrieval.compare --python langchain=ENV/bin/python llamaindex=ENV/bin/python haystack=ENV/bin/python \\
        [--sets cranfield squad hotpotqa] [--questions 1000] [--rounds 3]

Frameworks are installed by whoever runs this, in environments of their own; one that does not start is "not measured". Each is built as
its documentation says (`frameworks/`), with MiniLM, twenty candidates from each side where it has such a number, and nothing tuned. Quality
is over all questions of a set, or so many of them drawn with a seed; times are of SQuAD's paragraphs: from strings to a retriever with the
encoder loaded, and a question at a time by one thread. A round is one build and 300 questions of every framework; who begins changes.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peer_process import PeerError, PeerProcess
from benchmarks.retrieval.judged_sets import SETS, JudgedSet
from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.evaluation.intervals import bootstrap
from tripod.evaluation.retrieval_metrics import ndcg, recall, reciprocal_rank
from tripod.retrieval.local_embedder import find_default_embedder

FRAMEWORKS = ("tripod", "langchain", "llamaindex", "haystack")
METRICS = {"ndcg@10": ndcg, "recall@10": recall, "mrr@10": reciprocal_rank}
K = 10
SEED = 20260101
TIMED = "squad"
NUM_TIMED = 300  # questions of a round
GOALS = {"build_s": 0.40, "p50_ms": 0.35, "peak_mib": 1.0}  # ours over the best of the others, at most


@dataclass(frozen=True, slots=True)
class Contestant:
    """A framework in its process."""

    name: str
    process: PeerProcess
    load_s: float
    versions: Mapping[str, str]

    @staticmethod
    def start(name: str, python: str, encoder: Path, threads: int, log: Path) -> Contestant:
        """Raises PeerError with the reason."""
        environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        arguments = (name, str(encoder), str(threads), "1")
        try:
            process = PeerProcess(python, "benchmarks.retrieval.frameworks.worker", *arguments, environment=environment, log=log)
        except OSError as error:
            raise PeerError(str(error)) from error
        try:
            content = process.read()
        except PeerError as error:
            process.close()
            raise PeerError(f"{error}. {' '.join(log.read_text(errors='replace').splitlines()[-2:])}") from None
        return Contestant(name, process, content["load_s"], content["versions"])


def drawn(judged: JudgedSet, count: int) -> list[str]:
    """Ids of the questions that are asked, in an order that is the same for all."""
    queries = list(judged.queries)
    random.Random(SEED).shuffle(queries)
    return queries[:count]


def build(contestant: Contestant, judged: JudgedSet, queries: Sequence[str]) -> dict[str, float]:
    texts = list(judged.documents.values())
    return contestant.process.ask(ids=list(judged.documents), texts=texts, first=judged.queries[queries[0]])


def quality(contestants: Sequence[Contestant], judged: JudgedSet, queries: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Framework -> metric -> one value a question, in their order. The retrievers are built before."""
    values: dict[str, dict[str, list[float]]] = {}
    for contestant in contestants:
        rankings = contestant.process.ask(questions=[judged.queries[query] for query in queries])["rankings"]
        pairs = [(list(dict.fromkeys(ranking))[:K], judged.gains[query]) for ranking, query in zip(rankings, queries, strict=True)]
        values[contestant.name] = {name: [metric(ranking, gains, K) for ranking, gains in pairs] for name, metric in METRICS.items()}
    return values


def timed(start: Mapping[str, tuple[str, Path]], encoder: Path, threads: int, judged: JudgedSet, num_rounds: int) -> list[dict[str, Any]]:
    """Rounds in fresh processes, so that a peak of memory is that of one index."""
    questions = [judged.queries[query] for query in drawn(judged, NUM_TIMED)]
    rounds = []
    names = list(start)
    for number in range(num_rounds):
        figures: dict[str, dict[str, float]] = {}
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            python, log = start[name]
            contestant = Contestant.start(name, python, encoder, threads, log)
            try:
                built = build(contestant, judged, drawn(judged, 1))
                contestant.process.ask(questions=questions[:20])  # warm up
                answer = contestant.process.ask(questions=questions)
            finally:
                contestant.process.close()
            milliseconds = answer["ms"]
            figures[name] = {
                "load_s": contestant.load_s,
                "build_s": built["build_s"],
                "first_result_s": contestant.load_s + built["build_s"] + built["first_s"],
                "p50_ms": float(np.quantile(milliseconds, 0.5)),
                "p99_ms": float(np.quantile(milliseconds, 0.99)),
                "peak_mib": answer["peak_mib"],
            }
            print(f"round {number + 1}: {name}: {figures[name]}", file=sys.stderr, flush=True)
        rounds.append(figures)
    return rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], metavar="FRAMEWORK=PATH", help="the interpreter of a framework")
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collections (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=1000, help="at most, of a set")
    parser.add_argument("--rounds", type=int, default=3, help="of the times; 0 measures quality only")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of a build")
    arguments = parser.parse_args()
    embedder, reason = find_default_embedder()
    if embedder is None:
        raise SystemExit(f"no encoder: {reason}")
    pythons = {"tripod": sys.executable} | dict(entry.split("=", 1) for entry in arguments.python)
    absent: dict[str, str] = {name: "no interpreter was given" for name in FRAMEWORKS if name not in pythons}
    console = Console(width=150)
    intervals: dict[str, Any] = {}
    rounds: list[dict[str, Any]] = []
    versions: dict[str, Mapping[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="tripod-compare-") as logs:
        start = {name: (pythons[name], Path(logs) / f"{name}.log") for name in FRAMEWORKS if name in pythons}
        for set_name in arguments.sets:
            judged = SETS[set_name](arguments.data)
            queries = drawn(judged, arguments.questions)
            contestants = []
            for name, (python, log) in list(start.items()):
                try:
                    contestant = Contestant.start(name, python, embedder.folder, arguments.threads, log)
                    contestants.append(contestant)
                    build(contestant, judged, queries)
                    versions[name] = contestant.versions
                except PeerError as error:
                    absent[name] = str(error)
                    del start[name]
                    contestants = [other for other in contestants if other.name != name]
            values = quality(contestants, judged, queries)
            for contestant in contestants:
                contestant.process.close()
            intervals[set_name] = {"questions": len(queries), **_intervals(values)}
            console.print(_quality_table(set_name, len(judged.documents), intervals[set_name]))
        if arguments.rounds:
            rounds = timed(start, embedder.folder, arguments.threads, SETS[TIMED](arguments.data), arguments.rounds)
            console.print(_times_table(rounds))
    raw = {
        "setting": setting("benchmarks.retrieval.compare", ("torch", "numpy")),
        "threads": {"build": arguments.threads, "query": 1},
        "versions": versions,
        "not_measured": absent,
        "quality": intervals,
        "rounds": rounds,
    }
    for name, why in absent.items():
        console.print(f"{name}: not measured: {why}")
    console.print(f"raw: {keep('retrieval-compare', raw).name}")
    return 0


def _intervals(values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Means with intervals; and, paired, ours minus the best of the others by its mean."""
    found: dict[str, Any] = {
        name: {metric: _interval(of_metric) for metric, of_metric in by_metric.items()} for name, by_metric in values.items()
    }
    others = [name for name in values if name != "tripod"]
    if others and "tripod" in values:
        for metric in METRICS:
            best = max(others, key=lambda name: statistics.fmean(values[name][metric]))
            difference = np.subtract(values["tripod"][metric], values[best][metric]).tolist()
            found.setdefault("ours minus the best", {})[metric] = {"best": best, **_interval(difference)}
    return found


def _interval(values: Sequence[float]) -> dict[str, float]:
    interval = bootstrap(values, np.random.default_rng(SEED))
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _quality_table(name: str, num_texts: int, intervals: Mapping[str, Any]) -> Table:
    table = Table(title=f"{name}: {num_texts} texts, {intervals['questions']} questions; mean [95 % bootstrap interval]")
    table.add_column("framework")
    for metric in METRICS:
        table.add_column(metric)
    for row, by_metric in intervals.items():
        if isinstance(by_metric, Mapping):
            cells = [by_metric[metric] for metric in METRICS]
            table.add_row(
                row,
                *(f"{c['mean']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}] {c['best']}" if "best" in c else _plain(c) for c in cells),
            )
    return table


def _plain(cell: Mapping[str, float]) -> str:
    return f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def _times_table(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> Table:
    """Medians with least and most; below, ours over the best of the others, round by round."""
    names = list(rounds[0])
    columns = list(rounds[0][names[0]])
    table = Table(title=f"{TIMED}, {len(rounds)} rounds: median (least to most)")
    table.add_column("framework")
    for column in columns:
        table.add_column(column)
    for name in names:
        table.add_row(name, *(_spread([figures[name][column] for figures in rounds], ".2f") for column in columns))
    others = [name for name in names if name != "tripod"]
    if others and "tripod" in names:
        cells = []
        for column in columns:
            ratios = [figures["tripod"][column] / min(figures[name][column] for name in others) for figures in rounds]
            goal = f"; goal {GOALS[column]:.2f}" if column in GOALS else ""
            cells.append(f"{_spread(ratios, '.2f')}{goal}")
        table.add_row("tripod over the best other", *cells)
    return table


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
