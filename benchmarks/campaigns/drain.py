"""SIGTERM under load, again and again: no request that was let in is lost.

    python -m benchmarks.campaigns drain [--rounds 20] [--seed 0]

In each round clients ask without a pause and the signal comes at a random moment. In half of the rounds the bound is long: every
admitted request must be answered whole. In the other half it is short: every admitted request must end, by its answer or by an
error that says why; no socket is cut. Whoever was not let in gets 503 or finds nobody. The server counts what it let in; the
clients count what they got; the two must agree.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaigns.served_model import MODEL, Served, served, small_model
from benchmarks.setting import keep, setting
from tripod.serving.load import Outcome, Run, Target, closed_loop
from tripod.serving.workload import Ask, synthetic


def end_of(outcome: Outcome) -> str:
    """How a request ended, in a word; "cut" breaks the promise."""
    if outcome.is_ok:
        return "answered"
    if outcome.status == 200:
        return "error event" if outcome.error and "stopping" in outcome.error else "cut"
    if outcome.status == 503:
        return "refused" if outcome.error and "takes no more" in outcome.error else "ended by 503"
    return "nobody there" if outcome.status == 0 else f"status {outcome.status}"


async def _terminate_under_load(server: Served, asks: Sequence[Ask], *, concurrency: int, after_s: float) -> Run:
    async def terminate() -> None:
        await asyncio.sleep(after_s)
        server.process.terminate()

    signal = asyncio.create_task(terminate())
    run = await closed_loop(Target(url=server.url, model=MODEL), asks, concurrency=concurrency)
    await signal
    return run


def run_round(seed: int, model: Path, *, concurrency: int = 16) -> dict[str, Any]:
    """One round. `failures` is empty if the promise held."""
    generator = random.Random(seed)
    drain_s = 60.0 if seed % 2 == 0 else generator.uniform(0.0, 0.4)
    after_s = generator.uniform(0.3, 2.0)
    asks = synthetic(400, num_prompt_tokens=24, num_output_tokens=48, seed=seed, vocab_size=250)
    with served(model, "--drain", str(drain_s)) as server:
        run = asyncio.run(_terminate_under_load(server, asks, concurrency=concurrency, after_s=after_s))
        ending = server.wait()
    ends = Counter(map(end_of, run.outcomes))
    failures = [f"request {o.index}: {o.status} {o.error}" for o in run.outcomes if end_of(o) == "cut" or end_of(o).startswith("status")]
    told = ends["answered"] + ends["error event"] + ends["ended by 503"]
    if told != ending["admitted"]:
        failures.append(f"{ending['admitted']} requests were let in, and {told} got an end")
    if drain_s >= 60.0 and told != ends["answered"]:
        failures.append(f"{told - ends['answered']} requests were not finished although there was time")
    if ending["still_admitted"] or ending["unaccounted_blocks"]:
        failures.append(f"something is held at the end: {ending}")
    return {"seed": seed, "drain_s": drain_s, "after_s": after_s, "ends": dict(ends), "ending": ending, "failures": failures}


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held in every round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns drain", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="the first of `rounds` seeds")
    options = parser.parse_args(arguments)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="tripod-drain-") as folder:
        model = small_model(Path(folder))
        for seed in range(options.seed, options.seed + options.rounds):
            rounds.append(run_round(seed, model))
            print(f"{seed:4} bound {rounds[-1]['drain_s']:5.2f} s  {rounds[-1]['ends']}  {'; '.join(rounds[-1]['failures'])}", flush=True)
    path = keep("drain", {**setting("benchmarks.campaigns", ("torch", "starlette", "uvicorn")), "rounds": rounds})
    num_failed = sum(bool(one["failures"]) for one in rounds)
    print(f"{len(rounds)} rounds, {num_failed} failed; raw: {path}")
    return 1 if num_failed else 0
