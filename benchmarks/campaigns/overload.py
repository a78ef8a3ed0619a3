"""Twice and five times what the server can do: those who are let in are served as well as ever, the others are told at once, fairly.

    python -m benchmarks.campaigns overload [--seconds 30] [--seed 0]

A seeded model of 48 layers answers: it is the engine that is too slow for so many, as with any model that is worth serving, and not the
clients, who share its two cores. No loop repeats the prompts of another, or the prefix cache would make a later one lighter. First the
maximum: closed loops of more and more clients, until more bring no more. Then open loops at 0.5, 0.8 and 1.0 of it, at 2 and at 5; before
and after each of the last two the closed loop runs again, and the larger of the two is the maximum that it is judged by, so that a machine
that changes its speed meanwhile is not taken for a server that does. One of five tenants sends 20 times as much as each of the others.
Goodput counts answers that came whole within the objective: the first token within what a full queue takes at capacity, and twice that for
slack, 1 s at least.

The promise: at 2x and 5x goodput is at least 0.9 of its maximum; a refusal takes under 10 ms from the first byte to the answer by the
server's clock (99th percentile; the clients' own time is told as well); Jain's index is at least 0.95, over what each tenant got as a
share of its max-min fair part of all that was delivered.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.campaigns.served_model import MODEL, served, tiny_model
from benchmarks.campaigns.timings import bucket_quantile
from benchmarks.setting import keep, setting
from tripod.serving.load import Run, Target, closed_loop, open_loop
from tripod.serving.load_report import Objective, by_tenant, jain, max_min_fair, report
from tripod.serving.workload import Ask, poisson, synthetic

TENANTS = {"flood": 20, "a": 1, "b": 1, "c": 1, "d": 1}  # what each sends, in parts
MAX_RUNNING = 16
MAX_WAITING = 64  # a tenant that sends just its fair part, as here at 5x, comes in bursts that its part of the queue has to hold
NUM_OUTPUT_TOKENS = 64


def model_of_work(folder: Path) -> Path:
    """114 million parameters: some ten answers a second on two cores."""
    return tiny_model(folder, max_positions=512, hidden_size=512, num_layers=48)


def asks_of(num: int, seed: int) -> list[Ask]:
    """Requests of all tenants, mixed."""
    generator = random.Random(seed)
    tenants = generator.choices(list(TENANTS), weights=list(TENANTS.values()), k=num)
    asks = synthetic(num, num_prompt_tokens=32, num_output_tokens=NUM_OUTPUT_TOKENS, seed=seed, vocab_size=250)
    return [replace(ask, tenant=tenant) for ask, tenant in zip(asks, tenants, strict=True)]


def fairness(run: Run) -> float:
    """Jain's index over what each tenant got, as a share of its max-min fair part of all that was delivered."""
    got = by_tenant([outcome for outcome in run.outcomes if outcome.is_ok])
    demands = {tenant: NUM_OUTPUT_TOKENS * sum(outcome.tenant == tenant for outcome in run.outcomes) for tenant in TENANTS}
    fair = max_min_fair(list(demands.values()), sum(got.values()))
    return jain([got.get(tenant, 0) / part for tenant, part in zip(demands, fair, strict=True) if part])


def reject_quantile(before: Mapping[str, float], after: Mapping[str, float], share: float) -> float | None:
    """Of the server's own times of refusals between two scrapes."""
    prefix = 'tripod_reject_time_seconds_bucket{le="'
    buckets = sorted(
        (float(name[len(prefix) : -2].replace("+Inf", "inf")), value - before[name])
        for name, value in after.items()
        if name.startswith(prefix)
    )
    return bucket_quantile(buckets, share) if buckets[-1][1] else None


def saturated(target: Target, *, concurrency: int, num: int, objective: Objective, seed: int) -> float:
    """Goodput of a closed loop, requests a second."""
    outcome = asyncio.run(closed_loop(target, asks_of(num, seed), concurrency=concurrency))
    return float(report(outcome, objective)["goodput_requests_per_s"])


def run(model: Path, *, loads: Sequence[float], seconds: float, seed: int) -> dict[str, Any]:
    """The whole campaign. `failures` is empty if the promise held."""
    with served(model, "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING)) as server:
        target = Target(url=server.url, model=MODEL)
        seeds = count(1000 * seed)  # every loop has prompts of its own
        warm = asyncio.run(closed_loop(target, asks_of(4 * MAX_RUNNING, next(seeds)), concurrency=MAX_RUNNING))
        num = max(4 * MAX_RUNNING, round(4 * MAX_RUNNING / warm.duration_s * seconds / 2))
        sweep = {
            concurrency: saturated(target, concurrency=concurrency, num=num, objective=Objective(), seed=next(seeds))
            for concurrency in (MAX_RUNNING // 2, MAX_RUNNING, 2 * MAX_RUNNING, MAX_RUNNING + MAX_WAITING // 2)
        }
        full = max(sweep, key=lambda concurrency: sweep[concurrency])
        capacity = sweep[full]
        objective = Objective(ttft_s=max(1.0, 2.0 * (MAX_RUNNING + MAX_WAITING) / capacity))
        rows = []
        for load in loads:
            saturations = []
            if load > 1.0:
                saturations.append(saturated(target, concurrency=full, num=num, objective=objective, seed=next(seeds)))
            before = server.metrics()
            asks = poisson(asks_of(max(20, round(load * capacity * seconds)), next(seeds)), rate=load * capacity, seed=seed)
            outcome = asyncio.run(open_loop(target, asks))
            after = server.metrics()
            if load > 1.0:
                saturations.append(saturated(target, concurrency=full, num=num, objective=objective, seed=next(seeds)))
            rows.append(
                {
                    "load": load,
                    "saturated_goodput": saturations,
                    "jain": fairness(outcome),
                    "server_reject_p50_s": reject_quantile(before, after, 0.5),
                    "server_reject_p99_s": reject_quantile(before, after, 0.99),
                    **report(outcome, objective),
                }
            )
        ending = server.stop()
    return {
        "sweep": sweep,
        "capacity_requests_per_s": capacity,
        "rows": rows,
        "ending": ending,
        "failures": [failure for row in rows if row["load"] > 1.0 for failure in _failures(row)],
    }


def _failures(row: Mapping[str, Any]) -> list[str]:
    failures = []
    at = f"at {row['load']:g}x"
    share = row["goodput_requests_per_s"] / max(row["saturated_goodput"])
    if share < 0.9:
        failures.append(f"{at} goodput is {share:.2f} of its maximum")
    if row["server_reject_p99_s"] is None:
        failures.append(f"{at} nothing was refused")
    elif row["server_reject_p99_s"] >= 0.010:
        failures.append(f"{at} a refusal took {1000 * row['server_reject_p99_s']:.1f} ms (p99)")
    if row["jain"] < 0.95:
        failures.append(f"{at} Jain's index is {row['jain']:.3f}")
    if row["failed"]:
        failures.append(f"{at} {row['failed']} requests failed: {row['errors']}")
    return failures


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tripod-overload-") as folder:
        result = run(model_of_work(Path(folder)), loads=(0.5, 0.8, 1.0, 2.0, 5.0), seconds=options.seconds, seed=options.seed)
    path = keep("overload", {**setting("benchmarks.campaigns", ("torch", "starlette", "uvicorn")), **result})
    print("closed loops, requests/s: " + "  ".join(f"{clients} clients {goodput:.2f}" for clients, goodput in result["sweep"].items()))
    for row in result["rows"]:
        refusal = row["reject_s"]
        print(
            f"{row['load']:4.1f}x  goodput {row['goodput_requests_per_s']:6.2f}  "
            + (f"{row['goodput_requests_per_s'] / max(row['saturated_goodput']):.2f} of the maximum  " if row["saturated_goodput"] else "")
            + f"ok {row['ok']:5} rejected {row['rejected']:5}  Jain {row['jain']:.3f}"
            + (
                f"  refusal: server p50 {1000 * row['server_reject_p50_s']:.2f} p99 {1000 * row['server_reject_p99_s']:.2f} ms, "
                f"client p50 {1000 * refusal['p50']:.2f} p99 {1000 * refusal['p99']:.2f} ms"
                if refusal and row["server_reject_p99_s"] is not None
                else ""
            )
        )
    print(f"raw: {path}")
    for failure in result["failures"]:
        print(f"FAILED: {failure}")
    return 1 if result["failures"] else 0
