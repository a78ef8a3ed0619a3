"""How long GPT-NeoX's index maps take, and how much memory: Tripod's beside the floor, numpy's own two shuffles.

    python -m benchmarks.index_maps [--documents 20000000] [--rounds 3] [--folder FOLDER]

Synthetic documents of log-normal sizes (median 446 tokens, as the Pile's), two epochs, rows of 2048. The floor fills and shuffles
two arrays of the same lengths and dtypes by the same generator, and writes nothing; Tripod also cuts the samples, writes the three
files and maps them. Both run in turns, each in a fresh process, whose peak memory is read at its end. The shuffled arrays are
compared; when they differ, no ratio is printed. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import peak_bytes
from benchmarks.setting import keep, setting
from tripod.training.data.index_maps import IndexMaps, OrderSpec, num_epochs_for, open_index_maps

SEQ_LENGTH = 2048
SEED = 1234


def synthetic_sizes(num_documents: int) -> NDArray[np.int32]:
    """Drawn in pieces, so that the draw itself does not set the peak of memory."""
    rng = np.random.default_rng(0)
    sizes = np.empty(num_documents, np.int32)
    for start in range(0, num_documents, 1 << 20):
        sizes[start : start + (1 << 20)] = rng.lognormal(6.1, 1.3, min(1 << 20, num_documents - start)) + 1
    return sizes


def spec_for(sizes: NDArray[np.int32]) -> OrderSpec:
    """One and a half epochs of samples, so that two are laid out, as in the run on the deduplicated Pile."""
    return OrderSpec(seq_length=SEQ_LENGTH, num_samples=int(sizes.sum(dtype=np.int64) * 1.5) // SEQ_LENGTH, seed=SEED)


def build(sizes: NDArray[np.int32], folder: Path) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    maps: IndexMaps = open_index_maps(folder / "synthetic", sizes, spec_for(sizes))
    return maps.doc_idx, maps.shuffle_idx


def floor(sizes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    tokens, spec = int(sizes.sum(dtype=np.int64)), spec_for(sizes)
    num_epochs = num_epochs_for(tokens, spec)
    rng = np.random.RandomState(SEED)
    documents = np.empty(num_epochs * len(sizes), np.int32)
    documents.reshape(num_epochs, -1)[:] = np.arange(len(sizes), dtype=np.int32)
    rng.shuffle(documents)
    samples = np.arange((num_epochs * tokens - 1) // SEQ_LENGTH, dtype=np.uint32)
    rng.shuffle(samples)
    return documents, samples


def measure(contestant: str, num_documents: int, folder: Path) -> dict[str, float | str]:
    """In this process: seconds, peak memory, and a hash of the two shuffled arrays."""
    sizes = synthetic_sizes(num_documents)
    start, start_cpu = time.perf_counter(), time.process_time()
    arrays = build(sizes, folder) if contestant == "tripod" else floor(sizes)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = peak_bytes()  # before the arrays are hashed, which maps all of them
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "sha256": digest.hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the maps are written and removed again (default: the temporary folder)")
    parser.add_argument("--contestant", choices=["tripod", "floor"], help=argparse.SUPPRESS)  # a child process of this program
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measure(arguments.contestant, arguments.documents, arguments.folder)))
        return

    results: dict[str, list[dict[str, float]]] = {"floor": [], "tripod": []}
    for _ in range(arguments.rounds):
        for contestant in results:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                command = [sys.executable, "-m", "benchmarks.index_maps", "--documents", str(arguments.documents), "--folder", folder]
                answer = subprocess.run([*command, "--contestant", contestant], check=True, capture_output=True, text=True).stdout
            results[contestant].append(json.loads(answer))

    ran = setting("benchmarks.index_maps", ("numpy",)) | {"num_documents": arguments.documents}
    print(f"{ran['processor']}, {ran['versions']}, commit {ran['commit']}, {arguments.documents} documents")
    for contestant, rounds in results.items():
        for name, scale, unit in (("seconds", 1, "s"), ("cpu_seconds", 1, "s of CPU"), ("peak_bytes", 2**-20, "MiB at peak")):
            values = sorted(one[name] * scale for one in rounds)
            print(
                f"{contestant:8s}{statistics.median(values):10.2f} {unit:12s} ({values[0]:.2f} to {values[-1]:.2f}, {len(values)} rounds)"
            )
    agrees = len({one["sha256"] for rounds in results.values() for one in rounds}) == 1
    if agrees:
        ratios = [ours["cpu_seconds"] / theirs["cpu_seconds"] for ours, theirs in zip(results["tripod"], results["floor"], strict=True)]
        print(f"CPU time over the floor, round by round: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    else:
        print("no ratio: the shuffled arrays differ")
    print(f"raw: {keep('index-maps', {'setting': ran, 'results': results}).name}")
    if not agrees:
        sys.exit(1)


if __name__ == "__main__":
    main()
