"""How fast MiniLM turns paragraphs into vectors: Tripod's encoder beside sentence-transformers with its defaults.

    python -m benchmarks.embedding [--data FOLDER] [--n 512] [--rounds 5]

FOLDER holds squad-dev/dev-v1.1.half.json. The two take turns, so that both meet the same moods of the machine. Vectors are
compared before anything is timed; when they differ, no ratio is printed. Raw times go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.engine.default_encoder import locate_default_encoder
from tripod.engine.encode import Encoder

LOWEST_COSINE = 0.9999


def read_squad(folder: Path, num_paragraphs: int) -> tuple[list[str], list[str]]:
    """Paragraphs spread evenly over the set, and a question of each."""
    articles = json.loads((folder / "squad-dev" / "dev-v1.1.half.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    chosen = [paragraphs[i * len(paragraphs) // num_paragraphs] for i in range(min(num_paragraphs, len(paragraphs)))]
    return [paragraph["context"] for paragraph in chosen], [paragraph["qas"][0]["question"] for paragraph in chosen]


def take_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def describe(seconds: Sequence[float], amount: int, unit: str) -> str:
    """Median, least and most of amount / seconds."""
    rates = sorted(amount / second for second in seconds)
    return f"{statistics.median(rates):8.1f} {unit}  ({rates[0]:.1f} to {rates[-1]:.1f}, {len(rates)} rounds)"


def milliseconds(seconds: Sequence[float]) -> str:
    ordered = sorted(1e3 * second for second in seconds)
    return (
        f"{statistics.median(ordered):8.2f} ms median, {ordered[int(0.99 * (len(ordered) - 1))]:.2f} ms at 99 %  ({len(ordered)} queries)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds squad-dev/")
    parser.add_argument("--n", type=int, default=512, help="paragraphs (default 512)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()

    folder = locate_default_encoder()
    paragraphs, questions = read_squad(arguments.data, arguments.n)
    questions = questions[: arguments.queries]
    ours, theirs = Encoder.load(folder), SentenceTransformer(str(folder), device="cpu")
    dtype = str(ours.model.dtype).removeprefix("torch.")

    def their_encode(texts: list[str]) -> np.ndarray:
        return theirs.encode(texts, show_progress_bar=False)

    cosine = {  # also warms both up
        kind: (ours.encode(texts) * their_encode(texts)).sum(-1) for kind, texts in (("paragraphs", paragraphs), ("questions", questions))
    }
    agrees = all(values.min() >= LOWEST_COSINE for values in cosine.values())
    seconds = take_turns(
        {"sentence-transformers": lambda: their_encode(paragraphs), "tripod": lambda: ours.encode(paragraphs)}, arguments.rounds
    )
    query_seconds: dict[str, list[float]] = {"sentence-transformers": [], "tripod": []}
    for question in questions:
        turn = take_turns(
            {
                "sentence-transformers": lambda text=question: their_encode([text]),
                "tripod": lambda text=question: ours.encode([text], kind="query"),
            },
            1,
        )
        for name, values in turn.items():
            query_seconds[name] += values

    ran = setting("benchmarks.embedding", ("torch", "transformers", "sentence-transformers", "tokenizers"))
    ran |= {"threads": torch.get_num_threads(), "tripod_dtype": dtype}
    print(f"{ran['processor']}, {ran['threads']} threads, commit {ran['commit']}, {ran['versions']}")
    for kind, values in cosine.items():
        print(f"cosine of {kind:10s}  lowest {values.min():.6f}, mean {values.mean():.6f}")
    for name in seconds:
        label = f"{name} ({dtype if name == 'tripod' else 'default'})"
        print(f"{label:34s}{describe(seconds[name], len(paragraphs), 'paragraphs/s')}")
        print(f"{'  one question':34s}{milliseconds(query_seconds[name])}")
    if agrees:
        ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(seconds["sentence-transformers"], seconds["tripod"], strict=True)]
        print(f"ratio, round by round: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    else:
        print(f"no ratio: vectors differ by more than a cosine of {LOWEST_COSINE}")
    raw = {
        "setting": ran,
        "num_paragraphs": len(paragraphs),
        "lowest_cosine": {kind: float(values.min()) for kind, values in cosine.items()},
        "seconds": seconds,
        "query_seconds": query_seconds,
    }
    print(f"raw: {keep('embedding', raw).name}")
    if not agrees:
        sys.exit(1)


if __name__ == "__main__":
    main()
