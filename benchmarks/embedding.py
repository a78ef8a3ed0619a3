"""How fast MiniLM turns paragraphs into vectors: Tripod's encoder beside sentence-transformers with its defaults, and OpenVINO in bfloat16.

    python -m benchmarks.embedding [--data FOLDER] [--n 512] [--rounds 5] [--openvino ENV/bin/python]

FOLDER holds squad-dev/dev-v1.1.half.json. They take turns, so that all meet the same moods of the machine. One question is timed twice:
in turns, each after a rest and with the caches full of the others' weights, and one question after another (OpenVINO's own seconds, in a
process that waits for each question). Vectors are compared before anything is timed; when they differ, no ratio is printed. Raw times go
to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.peer_process import PeerProcess
from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.engine.default_encoder import locate_default_encoder
from tripod.engine.encode import Encoder

REST_S = 0.05  # before each call: the threads of the one before wait for more work by spinning, on the processors of the next
LOWEST_COSINE = {"sentence-transformers": 0.9999, "openvino": 0.999}  # in float32, and in bfloat16


def read_squad(folder: Path, num_paragraphs: int) -> tuple[list[str], list[str]]:
    """Paragraphs spread evenly over the set, and a question of each."""
    articles = json.loads((folder / "squad-dev" / "dev-v1.1.half.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    chosen = [paragraphs[i * len(paragraphs) // num_paragraphs] for i in range(min(num_paragraphs, len(paragraphs)))]
    return [paragraph["context"] for paragraph in chosen], [paragraph["qas"][0]["question"] for paragraph in chosen]


def took(name: str, call: Callable[[], object], inside: dict[str, list[float]]) -> float:
    """Seconds of a call; of one in another process what it took there, which is the last of `inside`."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return inside[name][-1] if name in inside else seconds


def take_turns(contestants: dict[str, Callable[[], object]], rounds: int, inside: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds of each call, round by round, each after a rest."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            time.sleep(REST_S)
            seconds[name].append(took(name, call, inside))
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
    parser.add_argument("--openvino", metavar="PYTHON", help="an interpreter that has OpenVINO, torch and transformers")
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()

    folder = locate_default_encoder()
    paragraphs, questions = read_squad(arguments.data, arguments.n)
    questions = questions[: arguments.queries]
    ours, theirs = Encoder.load(folder), SentenceTransformer(str(folder), device="cpu")
    dtype = str(ours.dtype).removeprefix("torch.")

    def their_encode(texts: list[str]) -> np.ndarray:
        return theirs.encode(texts, show_progress_bar=False)

    contestants: dict[str, Callable[[list[str]], object]] = {
        "sentence-transformers": their_encode,
        "tripod": lambda texts: ours.encode(texts, kind="query" if len(texts) == 1 else "passage"),
    }
    inside: dict[str, list[float]] = {}  # seconds of calls that are timed where they are done
    peer = (
        None
        if arguments.openvino is None
        else PeerProcess(arguments.openvino, "benchmarks.embedding_openvino", str(folder), str(torch.get_num_threads()))
    )
    if peer is not None:
        peer.read()

        def openvino_encode(texts: list[str]) -> np.ndarray:
            answer = peer.ask(texts=texts)
            inside.setdefault("openvino", []).append(answer["seconds"])
            return np.array(answer["vectors"], np.float32)

        contestants["openvino"] = openvino_encode
    cosine: dict[str, dict[str, np.ndarray]] = {}
    for name in contestants.keys() - {"tripod"}:  # also warms all up
        cosine[name] = {
            kind: (ours.encode(texts) * contestants[name](texts)).sum(-1)  # type: ignore[operator]
            for kind, texts in (("paragraphs", paragraphs), ("questions", questions))
        }
    agrees = {name: min(values.min() for values in by.values()) >= LOWEST_COSINE[name] for name, by in cosine.items()}
    seconds = take_turns({name: partial(encode, paragraphs) for name, encode in contestants.items()}, arguments.rounds, inside)
    query_seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for question in questions:
        for name, values in take_turns({name: partial(encode, [question]) for name, encode in contestants.items()}, 1, inside).items():
            query_seconds[name] += values
    in_a_row: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, encode in contestants.items():
            time.sleep(REST_S)
            encode(questions[:1])
            in_a_row[name] += [took(name, partial(encode, [question]), inside) for question in questions]
    if peer is not None:
        peer.close()

    ran = setting("benchmarks.embedding", ("torch", "transformers", "sentence-transformers", "tokenizers"))
    ran |= {"threads": torch.get_num_threads(), "tripod_dtype": dtype}
    print(f"{ran['processor']}, {ran['threads']} threads, commit {ran['commit']}, {ran['versions']}")
    for name, by in cosine.items():
        for kind, values in by.items():
            print(f"cosine with {name:22s} of {kind:10s}  lowest {values.min():.6f}, mean {values.mean():.6f}")
    for name in seconds:
        label = f"{name} ({ {'tripod': dtype, 'openvino': 'bfloat16'}.get(name, 'default') })"
        print(f"{label:34s}{describe(seconds[name], len(paragraphs), 'paragraphs/s')}")
        print(f"{'  one question in turns':34s}{milliseconds(query_seconds[name])}")
        print(f"{'  one after another':34s}{milliseconds(in_a_row[name])}")
    for name in cosine:
        if agrees[name]:
            ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(seconds[name], seconds["tripod"], strict=True)]
            print(f"beside {name}, round by round: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        else:
            print(f"beside {name} no ratio: vectors differ by more than a cosine of {LOWEST_COSINE[name]}")
    raw = {
        "setting": ran,
        "num_paragraphs": len(paragraphs),
        "lowest_cosine": {name: {kind: float(values.min()) for kind, values in by.items()} for name, by in cosine.items()},
        "seconds": seconds,
        "query_seconds": query_seconds,
        "in_a_row_seconds": in_a_row,
    }
    print(f"raw: {keep('embedding', raw).name}")
    if not all(agrees.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
