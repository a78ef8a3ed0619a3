"""Trains a dense model and its sparse twin of recipes/twins.yaml on a shelf of public-domain books, and compares them honestly.

    python -m benchmarks.campaigns twins [--data FOLDER] [--work FOLDER] [--jobs 2] [--steps 0] [--out benchmarks/results]

Reported are the losses on parts of the books that neither run reads (2 % of them): at equal steps, which are equal tokens; at equal FLOPs
(the sparse twin computes a little more for a token: its router); and at equal time, in which the twin pays for sending tokens to experts.
Between two validations losses are interpolated. The interval is of the rows: 95 % of a paired bootstrap of the difference at the last step.
And how early routing is learnt: of the experts that tokens go to at the end, the share that they went to at each step before; by chance it
is top_k / num_experts. The promise is that of the records: every checkpoint has one, from step 0 on, of the same tokens, and none dropped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.campaigns.books import tripod
from benchmarks.setting import commit
from benchmarks.shared_data import DATA
from tripod.analysis.routing.choices import overlap
from tripod.models.initialize import num_parameters
from tripod.training.compare import compare
from tripod.training.flops import flops_per_token
from tripod.training.metrics import read_metrics
from tripod.training.routing_record import RoutingRecord, read_routing, routing_path, routing_steps
from tripod.training.run import Run

RECIPE = Path(__file__).parents[2] / "recipes" / "twins.yaml"
TWINS = ("dense", "sparse")
_NUM_VALID_BATCHES = 8  # of 16 rows of 128 tokens


def train(books: Path, work: Path, jobs: int, steps: int) -> None:
    changes = {
        "data.source.inputs": json.dumps([str(books)]),
        "data.prefixes": json.dumps([str(work / "data" / "books")]),
        "data.tokenizer": str(work / "data" / "tokenizer"),
        "validation.num_batches": str(_NUM_VALID_BATCHES),
        "suite.runs": str(work / "runs" / "{size}"),
        **({"num_steps": str(steps)} if steps else {}),
    }
    arguments = [argument for path, value in changes.items() for argument in ("--set", f"{path}={value}")]
    print(tripod("suite", "run", RECIPE, "--jobs", str(jobs), *arguments), end="", flush=True)


def curve(run: Run) -> dict[str, Any]:
    """The validation losses of a run, with the steps, FLOPs and seconds before each."""
    seconds = 0.0
    found: dict[str, list[float]] = {"steps": [], "seconds": [], "losses": []}
    for record in read_metrics(run.metrics_path):
        seconds += record.get("seconds", 0.0)
        if "valid_loss" in record:
            for name, value in (("steps", record["step"]), ("seconds", seconds), ("losses", record["valid_loss"])):
                found[name].append(value)
    batch, config = run.recipe.batch, run.recipe.model.config()
    of_token = flops_per_token(config, batch.seq_length)
    return found | {
        "flops": [step * batch.rows * batch.seq_length * of_token for step in found["steps"]],
        "flops_per_token": of_token,
        "parameters": num_parameters(config),
    }


def at_equal(curves: dict[str, dict[str, Any]], what: str) -> list[dict[str, float]]:
    """The losses of both after a quarter, a half, three quarters and all of what the cheaper of them spent."""
    budget = min(curves[twin][what][-1] for twin in TWINS)
    amounts = [share * budget for share in (0.25, 0.5, 0.75, 1.0)]
    losses = {twin: np.interp(amounts, curves[twin][what], curves[twin]["losses"]).tolist() for twin in TWINS}
    return [{what: amount} | {twin: losses[twin][place] for twin in TWINS} for place, amount in enumerate(amounts)]


def kept_choices(record: RoutingRecord, last: RoutingRecord) -> list[float]:
    """[L]: of the experts that tokens go to at the end, the share that they went to before."""
    return [overlap(before, after) for before, after in zip(record.experts, last.experts, strict=True)]


def measure(work: Path) -> dict[str, Any]:
    runs = {twin: Run.open(work / "runs" / twin) for twin in TWINS}
    curves = {twin: curve(run) for twin, run in runs.items()}
    [difference] = compare([(runs["sparse"], runs["dense"])], steps=[runs["sparse"].recipe.num_steps])
    folder = runs["sparse"].folder
    steps = routing_steps(folder)
    records = [read_routing(routing_path(folder, step)) for step in steps]
    last = records[-1]
    is_whole = steps == runs["sparse"].steps and all(
        np.array_equal(record.token_ids, last.token_ids) and bool(record.is_kept.all()) for record in records
    )
    measured = list(read_metrics(runs["sparse"].metrics_path))
    return {
        "curves": curves,
        "at_equal": {what: at_equal(curves, what) for what in ("steps", "flops", "seconds")},
        "sparse_minus_dense": asdict(difference),
        "has_same_order": len({run.manifest(0).order_fingerprint for run in runs.values()}) == 1,
        "routing": {
            "num_tokens": last.num_tokens,
            "by_chance": last.top_k / last.num_experts,
            "kept_choices": {step: kept_choices(record, last) for step, record in zip(steps, records, strict=True)},
            "is_whole": is_whole,
            "balance_loss": measured[-1]["balance_loss"],
            "max_load": measured[-1]["max_load"],
        },
    }


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if both read one order and the routing record is whole."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns twins", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA / "text-classic-books")
    parser.add_argument("--work", type=Path, help="a temporary folder if absent; kept runs are gone on with")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="of each run; as the recipe says if 0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tripod-twins-") as name:
        work = options.work or Path(name)
        began_s = time.monotonic()
        train(options.data, work, options.jobs, options.steps)
        results = measure(work) | {"wall_s": time.monotonic() - began_s, "jobs": options.jobs, "commit": commit()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "twins.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for twin, facts in results["curves"].items():
        print(f"{twin}: {facts['parameters']:,} parameters, {facts['flops_per_token']:,} FLOPs a token, {facts['seconds'][-1]:.0f} s")
    for what, rows in results["at_equal"].items():
        for row in rows:
            print(f"at {row[what]:.3g} {what}: dense {row['dense']:.4f}, sparse {row['sparse']:.4f}, {row['sparse'] - row['dense']:+.4f}")
    one, routing = results["sparse_minus_dense"], results["routing"]
    print(
        f"sparse - dense at step {one['step']}: {one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f}), {one['num_texts']} rows"
    )
    for step, kept in routing["kept_choices"].items():
        print(f"step {step}: {', '.join(f'{share:.2f}' for share in kept)} of the last choices, layer by layer")
    print(
        f"by chance {routing['by_chance']:.3f}, of {routing['num_tokens']} tokens; fullest expert {routing['max_load']:.2f} times the mean"
    )
    return 0 if results["has_same_order"] and routing["is_whole"] else 1
