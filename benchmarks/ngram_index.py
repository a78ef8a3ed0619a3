"""What the n-gram index of a run's training tokens costs, and how fast it answers, against the corpus's size.

    python -m benchmarks.ngram_index [--data FOLDER] [--tokens 1000000 10000000 100000000] [--queries 50] [--folder FOLDER]

The corpus is drawn from the books in FOLDER/text-classic-books by their own statistics: behind any two tokens comes what comes behind
them somewhere in the books. So its n-grams are as frequent as a text's, and it can be as long as one likes. Rows of 2048. Each size is
built and searched in processes of their own, whose peak memory is read. A query traces a text of 200 tokens, half of it read by the run and
half made up, into its maximal spans with all their places; the first one of a process finds the index mapped and nothing of it read. What a
query finds is checked: the planted stretches, at the places from which they were taken. Raw results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import peak_bytes
from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.text.load_tokenizer import load_tokenizer
from tripod.training.data.build import build_dataset
from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.data.indexed_dataset_writer import IndexedDatasetWriter
from tripod.training.data.open_order import open_order
from tripod.training.ngrams.build import build_index
from tripod.training.ngrams.index import NGramIndex
from tripod.training.ngrams.trace import trace

SEQ_LENGTH, ROWS, VOCAB_SIZE, DOCUMENT = 2048, 8, 8192, 1024
_CHAINS = 4096  # drawn side by side
QUERY_TOKENS, PIECE = 200, 25  # a query is pieces, taken from rows and made up in turns


def drawn_like(tokens: NDArray[Any], num_tokens: int) -> NDArray[np.uint16]:
    """Tokens of which each comes behind the two before it somewhere in the given ones: [num_tokens]."""
    rng = np.random.default_rng(0)
    key = tokens[:-2].astype(np.int64) << 32 | tokens[1:-1]  # of the pair at each place; what follows is at place + 2
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first, last = np.searchsorted(ordered, key, "left"), np.searchsorted(ordered, key, "right")
    place = rng.integers(0, len(key), _CHAINS)
    drawn = np.empty((-(-num_tokens // _CHAINS), _CHAINS), np.uint16)
    for step in range(len(drawn)):
        same = order[first[place] + (rng.random(_CHAINS) * (last - first)[place]).astype(np.int64)]
        drawn[step] = tokens[same + 2]
        place = np.minimum(same + 1, len(key) - 1)
    return drawn.T.ravel()[:num_tokens]


def corpus(data: Path, folder: Path, num_tokens: int) -> None:
    """Writes tokenizer and data set where they are absent."""
    from tripod.text.bpe import train_tokenizer
    from tripod.training.data.raw_documents import find_files, read_documents

    books = data / "text-classic-books"
    if not (folder / "tokenizer").is_dir():
        files = find_files([books])
        train_tokenizer(
            (one.text for path, name in files for one in read_documents(path, name)), folder / "tokenizer", vocab_size=VOCAB_SIZE
        )
        build_dataset([books], folder / "tokenizer", folder / "books", append_eod=True)
    prefix = folder / f"corpus-{num_tokens}"
    if not prefix.with_name(prefix.name + ".idx").is_file():
        tokens = drawn_like(np.array(IndexedDataset.open(folder / "books").all_tokens), num_tokens)
        with IndexedDatasetWriter(prefix, np.dtype("<u2")) as writer:
            for start in range(0, num_tokens, DOCUMENT):
                writer.add_document(tokens[start : start + DOCUMENT])


def _order(folder: Path, num_tokens: int) -> tuple[Any, int]:
    num_steps = num_tokens // (SEQ_LENGTH * ROWS) - 1
    prefix = folder / f"corpus-{num_tokens}"
    return open_order([prefix], seq_length=SEQ_LENGTH, batch_size=ROWS, num_steps=num_steps, seed=1234), num_steps


def build(folder: Path, num_tokens: int) -> dict[str, float]:
    """In this process."""
    order, num_steps = _order(folder, num_tokens)
    shutil.rmtree(folder / f"index-{num_tokens}", ignore_errors=True)
    stages: dict[str, float] = {}
    before = time.perf_counter()

    def progress(stage: str, done: int, total: int | None) -> None:
        stages.setdefault(stage, time.perf_counter() - before)

    facts = build_index(order, num_steps, folder / f"index-{num_tokens}", progress=progress)
    seconds = time.perf_counter() - before
    size = sum(file.stat().st_size for file in (folder / f"index-{num_tokens}").iterdir())
    return {
        "tokens": facts.num_tokens,
        "seconds": seconds,
        "seconds_reading": stages["sort suffixes"],
        "peak_bytes": peak_bytes(),
        "disk_bytes": size,
    }


def query(folder: Path, num_tokens: int, num_queries: int) -> dict[str, Any]:
    """In this process: seconds of each query, and how many planted stretches were found where they were taken from."""
    order, num_steps = _order(folder, num_tokens)
    tokenizer = load_tokenizer(folder / "tokenizer")
    rng = np.random.default_rng(1)
    texts, planted = [], []
    for _ in range(num_queries):
        pieces: list[list[int]] = []
        for number in range(QUERY_TOKENS // PIECE):
            row, column = int(rng.integers(num_steps * ROWS)), int(rng.integers(SEQ_LENGTH - PIECE))
            of_row = order.rows.row(row)[column : column + PIECE].tolist()
            if number % 2 == 0:
                planted.append((len(texts), len(pieces) * PIECE, row, column))
            pieces.append(of_row if number % 2 == 0 else rng.integers(256, VOCAB_SIZE, PIECE).tolist())
        texts.append([token for piece in pieces for token in piece])
    index = NGramIndex.open(folder / f"index-{num_tokens}")
    seconds, spans, traced = [], 0, []
    for text in texts:
        before = time.perf_counter()
        traced.append(trace(index, text, tokenizer))
        seconds.append(time.perf_counter() - before)
        spans += len(traced[-1].spans)
    found = 0
    for number, start, row, column in planted:
        covering = [span for span in traced[number].spans if span.start <= start and start + PIECE <= span.stop]
        found += any((one.place.row, one.place.column + start - span.start) == (row, column) for span in covering for one in span.seen)
    return {"seconds": seconds, "spans": spans, "planted": len(planted), "found": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds text-classic-books/")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="for corpora and indexes, kept; a temporary one if absent")
    parser.add_argument("--part", choices=["build", "query"], help=argparse.SUPPRESS)  # a child process of this program
    options = parser.parse_args()
    if options.part:
        [size] = options.tokens
        print(json.dumps(build(options.folder, size) if options.part == "build" else query(options.folder, size, options.queries)))
        return 0
    ran = setting("benchmarks.ngram_index", ("numpy", "pydivsufsort"))
    print(f"{ran['processor']}, commit {ran['commit']}, {ran['versions']}")
    results = []
    with tempfile.TemporaryDirectory(prefix="tripod-ngrams-") as name:
        folder = options.folder or Path(name)
        for size in options.tokens:
            corpus(options.data, folder, size)
            built, asked = (_child(part, folder, size, options.queries) for part in ("build", "query"))
            results.append({"built": built, "asked": asked})
            later = sorted(asked["seconds"][1:])
            print(
                f"{built['tokens']:>11,} tokens: built in {built['seconds']:.1f} s ({built['tokens'] / built['seconds']:,.0f} tokens/s, "
                f"{built['seconds_reading']:.1f} s of it reading rows), {built['peak_bytes'] / 2**20:.0f} MiB at peak, "
                f"{built['disk_bytes'] / built['tokens']:.1f} bytes a token on disk"
            )
            print(
                f"{'':>11}  a text of {QUERY_TOKENS} tokens traced in {1e3 * statistics.median(later):.0f} ms "
                f"({1e3 * later[0]:.0f} to {1e3 * later[-1]:.0f}, {len(later)} texts), the first in {1e3 * asked['seconds'][0]:.0f} ms; "
                f"{asked['found']} of {asked['planted']} planted stretches found in their places"
            )
    print(f"raw: {keep('ngram-index', {'setting': ran, 'results': results}).name}")
    return 0 if all(one["asked"]["found"] == one["asked"]["planted"] for one in results) else 1


def _child(part: str, folder: Path, size: int, queries: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.ngram_index", "--part", part, "--folder", str(folder), "--tokens", str(size)]
    found: dict[str, Any] = json.loads(
        subprocess.run([*command, "--queries", str(queries)], check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
