"""What a step of a flow costs beside its function, traced and checked, next to the frameworks that people chain steps with.

    python -m benchmarks.flows [--python FRAMEWORK=ENV/bin/python ...] [--rounds 5] [--seconds 0.5] [--idle 10000]

Chains of 1, 5 and 20 steps, each of which asks a scripted model (a dictionary), from synchronous and from asynchronous code, one and 200
at a time; then 10,000 runs that wait for their model, and as many executions that wait for a person. The frameworks (langchain, langgraph,
haystack, llamaindex, pydantic-graph) run in processes of their own, with the interpreter that is given for them or else this one; in every
round each has its turn, and who begins changes. One that does not start, or answers something else, is "not measured". Times are the
medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.flows_peers import BUILDERS
from benchmarks.peer_process import PeerError, PeerProcess
from benchmarks.setting import keep, setting

CASES = [(steps, mode, at_once) for mode, at_once in (("sync", 1), ("async", 1), ("async", 200)) for steps in (1, 5, 20)]
GOAL_US, GOAL_RATIO = 10.0, 0.125  # of a step among 20; ours over the best of the others


class Worker:
    """A framework in its process."""

    def __init__(self, name: str, python: str) -> None:
        quiet = {"HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false", "OTEL_SDK_DISABLED": "true"}
        self.name = name
        self.process = PeerProcess(python, "benchmarks.flows_peers", name, environment=quiet)
        self.version: str = self.process.read()["version"]


async def waiting_executions(number: int) -> dict[str, float]:
    """Bytes on disk, and seconds to begin, of each of many executions that wait for a person."""
    from tripod import Journal, durable
    from tripod.flows.durable import wait_for

    @durable
    async def ask(text: str) -> bool:
        return await wait_for("approve", bool, question=text)

    with tempfile.TemporaryDirectory(prefix="tripod-flows-") as folder:
        path = Path(folder) / "journal.db"
        async with Journal(path) as journal:
            started = time.perf_counter()
            for one in range(number):
                assert (await journal.run(ask, str(one), id=str(one))).state == "waiting"
            took_s = time.perf_counter() - started
        return {"bytes": path.stat().st_size / number, "begin_ms": took_s / number * 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], metavar="FRAMEWORK=PATH", help="the interpreter of a framework")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, at least")
    parser.add_argument("--idle", type=int, default=10_000, help="runs that wait; 0 leaves this out")
    arguments = parser.parse_args()
    pythons = dict(entry.split("=", 1) for entry in arguments.python)
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    for name in BUILDERS:
        try:
            workers[name] = Worker(name, pythons.get(name, sys.executable))
        except (OSError, PeerError) as error:
            absent[name] = str(error)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for number in range(arguments.rounds):
        names = list(workers)
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            for steps, mode, at_once in CASES:
                found = workers[name].process.ask(num_steps=steps, mode=mode, num_at_once=at_once, least_s=arguments.seconds)
                if found["us"] is None:
                    continue  # the framework has no such way
                if found["result"] != str(steps):
                    absent[name] = f"{steps} steps returned {found['result']!r}"
                    continue
                times[name].setdefault(f"{mode} {at_once} {steps}", []).append(found["us"])
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    memory: dict[str, Any] = {}
    for name, worker in workers.items():
        if arguments.idle:
            try:
                memory[name] = worker.process.ask(idle=arguments.idle)
            except PeerError as error:
                memory[name] = {"error": str(error)}
        worker.process.close()
    durable = asyncio.run(waiting_executions(arguments.idle)) if arguments.idle else None
    measured = {name: cases for name, cases in times.items() if name not in absent}
    verdict = judge(measured)
    _print(measured, memory, durable, verdict, absent)
    raw = {
        "setting": setting("benchmarks.flows", ("anyio", "pydantic")),
        "versions": {name: worker.version for name, worker in workers.items()},
        "not_measured": absent,
        "microseconds": times,
        "idle": memory,
        "waiting_executions": durable,
        "verdict": verdict,
    }
    print(keep("flows", raw))
    return 0 if all(one["holds"] for one in verdict.values()) else 1


def judge(times: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """For each way of running 20 steps: ours a step, the fastest of the others, and whether the goal holds."""
    verdict = {}
    for mode in ("sync 1", "async 1", "async 200"):
        steps = {name: statistics.median(cases[f"{mode} 20"]) / 20 for name, cases in times.items() if f"{mode} 20" in cases}
        ours = steps["tripod"]
        others = {name: us for name, us in steps.items() if name not in ("tripod", "floor")}
        best = min(others, key=lambda name: others[name]) if others else None
        ratio = ours / others[best] if best else None
        holds = ours <= GOAL_US and (ratio is None or ratio <= GOAL_RATIO)
        verdict[mode] = {
            "us_per_step": ours,
            "fastest": best,
            "its_us_per_step": others[best] if best else None,
            "ratio": ratio,
            "holds": holds,
        }
    return verdict


def _print(times: Any, memory: Any, durable: Any, verdict: Any, absent: dict[str, str]) -> None:
    console = Console(width=150)
    table = Table("", *(f"{mode} x{at_once}\n{steps} steps" for steps, mode, at_once in CASES), "idle run", title="microseconds a chain")
    for name, cases in times.items():
        cells = [
            f"{statistics.median(cases[key]):.1f}" if (key := f"{mode} {at_once} {steps}") in cases else "-"
            for steps, mode, at_once in CASES
        ]
        idle = f"{memory[name]['bytes'] / 1024:.1f} KiB" if memory.get(name, {}).get("bytes") is not None else "-"
        table.add_row(name, *cells, idle)
    console.print(table)
    for name, why in absent.items():
        console.print(f"{name}: not measured: {why}")
    for mode, one in verdict.items():
        beside = f"{one['ratio']:.3f} of {one['fastest']} ({one['its_us_per_step']:.1f})" if one["fastest"] else "no peer measured"
        console.print(f"{mode}: {one['us_per_step']:.2f} us a step of 20; {beside}; goal {GOAL_US:.0f} us and {GOAL_RATIO}: {one['holds']}")
    if durable:
        told = f"{durable['bytes']:.0f} bytes on disk, none in memory; {durable['begin_ms']:.1f} ms to begin"
        console.print(f"an execution that waits for a person: {told}")


if __name__ == "__main__":
    sys.exit(main())
