"""Trains the three sizes of recipes/tiny.yaml on a shelf of public-domain books by `tripod suite run`, and asks whether size pays.

    python -m benchmarks.campaigns books [--data FOLDER] [--work FOLDER] [--jobs 2] [--every 0] [--out benchmarks/results]

The promise: the loss on books' parts that no run reads (2 % of them) falls with size at the end of training; the middle size goes on from a
beginning in words of the books; every text of a batch that `tripod data batch` shows stands in the file that it names. An interval is of
the rows: 95 % of a paired bootstrap of the difference between neighbouring sizes on the same rows. --work keeps the runs, and a second call
goes on with them; --every keeps more checkpoints, for benchmarks/delta_store.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.setting import commit
from benchmarks.shared_data import DATA
from tripod.models.initialize import num_parameters
from tripod.training.compare import VALIDATION, compare
from tripod.training.metrics import read_metrics
from tripod.training.run import Run

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
SIZES = ("tiny-s", "tiny-m", "tiny-l")
BEGINNING = "She looked at him and"
_NUM_VALID_BATCHES = 32  # of 16 rows of 128 tokens


def tripod(*arguments: str | Path) -> str:
    """What a command printed; it must end with 0."""
    done = subprocess.run([sys.executable, "-m", "tripod", *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def train(books: Path, work: Path, jobs: int, every: int, sizes: Sequence[str] = SIZES) -> None:
    changes = {
        "suite.sizes": json.dumps(list(sizes)),
        "data.source.inputs": json.dumps([str(books)]),
        "data.prefixes": json.dumps([str(work / "data" / "books")]),
        "data.tokenizer": str(work / "data" / "tokenizer"),
        "validation": json.dumps({"every": 100, "num_batches": _NUM_VALID_BATCHES}),
        "suite.runs": str(work / "runs" / "{size}"),
        **({"checkpoints.every": str(every)} if every else {}),
    }
    arguments = [argument for path, value in changes.items() for argument in ("--set", f"{path}={value}")]
    print(tripod("suite", "run", RECIPE, "--jobs", str(jobs), *arguments), end="", flush=True)


def texts_found(run: Path, books: Path, step: int) -> tuple[int, int]:
    """How many texts of a step stand in the books that they are said to be from, and of how many."""
    shown = tripod("data", "batch", run, str(step), "--rows", "16", "--max-chars", "0")
    titles_and_texts = [part.split("\n", 1) for part in shown.split("\n--- ")[1:]]
    found = 0
    for title, text in titles_and_texts:
        book = (books / title.rpartition(", ")[2]).read_text(encoding="utf-8")
        found += text.split("\n=== row ")[0].removesuffix("\n").strip("\ufffd") in book
    return found, len(titles_and_texts)


def measure(books: Path, work: Path) -> dict[str, Any]:
    runs = {size: Run.open(work / "runs" / size) for size in SIZES}
    sizes = {}
    for size, run in runs.items():
        records = list(read_metrics(run.metrics_path))
        config = run.recipe.model.config()
        sizes[size] = {
            "parameters": num_parameters(config),
            "without_embeddings": num_parameters(config) - 2 * config.vocab_size * config.hidden_size,
            "validation_loss": {record["step"]: record["valid_loss"] for record in records if "valid_loss" in record},
            "seconds": sum(record.get("seconds", 0.0) for record in records),
        }
    step = runs["tiny-m"].recipe.num_steps
    differences = [compare([(runs[larger], runs[smaller])], steps=[step])[0] for smaller, larger in pairwise(SIZES)]
    assert all(one.metric == VALIDATION for one in differences)
    found, of = texts_found(work / "runs" / "tiny-m", books, 100)
    return {
        "sizes": sizes,
        "differences": [asdict(one) for one in differences],
        "generated": BEGINNING + tripod("generate", f"{work}/runs/tiny-m@step512", BEGINNING, "--max-tokens", "48").rstrip("\n"),
        "texts_of_step_100_found": [found, of],
    }


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if all that was promised holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns books", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA / "text-classic-books")
    parser.add_argument("--work", type=Path, help="a temporary folder if absent")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=0, help="keep a checkpoint every so many steps; as the recipe says if 0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tripod-books-") as name:
        work = options.work or Path(name)
        began_s = time.monotonic()
        train(options.data, work, options.jobs, options.every)
        results = measure(options.data, work)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    results |= {"wall_s": time.monotonic() - began_s, "cpu_s": used.ru_utime + used.ru_stime, "jobs": options.jobs}
    results["commit"] = commit()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "books.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for size, facts in results["sizes"].items():
        last = list(facts["validation_loss"].items())[-1]
        parameters = f"{facts['parameters']:,} parameters, {facts['without_embeddings']:,} without embeddings"
        print(f"{size}: {parameters}: loss {last[1]:.4f} at step {last[0]}")
    for (smaller, larger), one in zip(pairwise(SIZES), results["differences"], strict=True):
        print(f"{larger} - {smaller}: {one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f}) on {one['num_texts']} rows")
    print(results["generated"])
    found, of = results["texts_of_step_100_found"]
    print(f"texts of step 100 found in their books: {found} of {of}; {results['cpu_s']:.0f} s of CPU, {results['wall_s']:.0f} s")
    return 0 if all(one["high"] < 0 for one in results["differences"]) and found == of else 1
