"""Thousands of requests of a real trace, a third of whose clients hang up at random moments, on an engine whose steps fail now and then.

    python -m benchmarks.campaigns soak [--requests 10000] [--concurrency 32] [--seed 0] [--fail-every 300]

Lengths are the trace's (Azure, conversations), scaled to the 260K model; arrivals are not replayed: so many clients ask one after
the other, as fast as they are answered. The promise: every client gets its end (a whole answer, an error with its status, or an
error event; never a cut socket), when all is done nothing is held (free + cached = total, no ticket), no block ever lost its owner, and
the memory of the second half differs from that of the first by less than 2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.campaigns.served_model import MODEL, VOCAB_SIZE, served, small_model
from benchmarks.setting import keep, setting
from benchmarks.shared_data import DATA
from tripod.serving.load import Outcome, Target, closed_loop
from tripod.serving.workload import Ask, Scale, TraceRow, from_trace, read_trace

TRACE = DATA / "serving-traces" / "AzureLLMInferenceTrace_conv.csv"
SCALE = Scale(prompt=0.06, output=0.1, max_prompt_tokens=300, max_output_tokens=80)
ABORTED = 0.3  # of all requests
WARM_UP = 0.25  # of the time; what an allocator keeps has grown to its size by then


def asks_of(rows: Sequence[TraceRow], seed: int) -> list[Ask]:
    """The requests.

    The clients of 30 % hang up: a third of these within 50 ms, mostly before their first token, the others anywhere in the answer.
    """
    generator = random.Random(seed)
    asks = []
    for i, ask in enumerate(from_trace(rows, scale=SCALE, seed=seed, vocab_size=VOCAB_SIZE)):
        asked = replace(ask, tenant=f"t{i % 5}")
        if generator.random() < ABORTED:
            if generator.random() < 1 / 3:
                asked = replace(asked, abort_after_s=generator.uniform(0.0, 0.05))
            else:
                asked = replace(asked, abort_after_chunks=generator.randint(1, ask.max_tokens))
        asks.append(asked)
    return asks


def end_of(outcome: Outcome) -> str:
    """How a request ended, in a word; "lost" breaks the promise."""
    if outcome.is_aborted:
        return "hung up"
    if outcome.is_ok:
        return "answered"
    if outcome.status == 200:
        return "error event" if outcome.error and "the server failed on this request" in outcome.error else "lost"
    return f"status {outcome.status}" if outcome.status else "lost"


class MemoryLog:
    """Samples the resident memory of a process twice a second."""

    def __init__(self, pid: int) -> None:
        self.samples: list[int] = []
        self._process = psutil.Process(pid)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            self.samples.append(self._process.memory_info().rss)

    def __enter__(self) -> MemoryLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def drift(self) -> float:
        """By how much the second half, after the warm-up, exceeds the first, relative."""
        steady = self.samples[round(len(self.samples) * WARM_UP) :]
        half = len(steady) // 2
        if half < 2:
            return 0.0
        return statistics.median(steady[half:]) / statistics.median(steady[:half]) - 1.0


def run(asks: Sequence[Ask], model: Path, *, concurrency: int, fail_every: int, seed: int) -> dict[str, Any]:
    """One soak. `failures` is empty if the promise held."""
    with served(model, "--fail-every", str(fail_every), "--seed", str(seed)) as server:
        with MemoryLog(server.process.pid) as memory:
            result = asyncio.run(closed_loop(Target(url=server.url, model=MODEL), asks, concurrency=concurrency))
        ending = server.stop()
    ends = Counter(map(end_of, result.outcomes))
    failures = [f"request {o.index} was lost: {o.status} {o.error}" for o in result.outcomes if end_of(o) == "lost"][:20]
    if len(result.outcomes) != len(asks):
        failures.append(f"{len(asks)} clients asked and {len(result.outcomes)} got their end")
    for name in ("still_admitted", "running", "waiting", "unaccounted_blocks", "leaked_blocks"):
        if ending[name]:
            failures.append(f"{name} is {ending[name]} at the end")
    if abs(memory.drift) >= 0.02:
        failures.append(f"memory drifted by {memory.drift:.1%}")
    return {
        "ends": dict(ends),
        "duration_s": result.duration_s,
        "memory_drift": memory.drift,
        "memory_bytes": memory.samples,
        "ending": ending,
        "failures": failures,
    }


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--fail-every", type=int, default=300, help="about one step in so many fails")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    asks = asks_of(read_trace(TRACE)[: options.requests], options.seed)
    with tempfile.TemporaryDirectory(prefix="tripod-soak-") as folder:
        result = run(asks, small_model(Path(folder)), concurrency=options.concurrency, fail_every=options.fail_every, seed=options.seed)
    path = keep("soak", {**setting("benchmarks.campaigns", ("torch", "starlette", "uvicorn")), **result})
    print(f"{len(asks)} requests in {result['duration_s']:.0f} s: {result['ends']}")
    print(f"{result['ending']['failed_steps']} of {result['ending']['steps']} steps failed; memory drift {result['memory_drift']:+.2%}")
    print(f"raw: {path}")
    for failure in result["failures"]:
        print(f"FAILED: {failure}")
    return 1 if result["failures"] else 0
