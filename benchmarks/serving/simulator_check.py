"""The simulator against the real engine: measure what steps cost, then replay one trace on both and compare what users feel.

    python -m benchmarks.serving.simulator_check TRACE [--shape pythia-160m] [--requests 60] [--length 0.1] [--load 0.5 1.5]
        [--cost-model cost.json]

The cost model is fitted to a made workload, and the check runs on another one: the first requests of the trace, with lengths scaled so that
a small machine can serve them, at rates that are shares of the throughput that the simulator foresees. Both sides get the same arrivals and
the same limits. `tripod simulate TRACE --cost-model cost.json` reads the file that this writes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

from benchmarks.setting import keep, setting
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.policy.policy import Schedule
from tripod.engine.simulation.cost_model import CostModel, StepWork
from tripod.engine.simulation.report import Objective, Report
from tripod.engine.simulation.simulator import Outcome, simulate
from tripod.engine.simulation.workload import Arrival, read_trace, scale, synthetic
from tripod.sampling import SamplingParams
from tripod.trace import Delta

TARGET = 0.2  # relative error of time to first token and of throughput
_GAP_S = 0.005  # two steps that follow each other sooner belong together: what lies between is part of the first one's cost


@dataclass(frozen=True)
class Check:
    """One rate, on both sides."""

    load: float
    real: Report
    simulated: Report

    def errors(self) -> dict[str, float]:
        """Simulated over real, less one."""
        pairs = {
            "TTFT p50": (self.simulated.ttft_s["p50"], self.real.ttft_s["p50"]),
            "TTFT p90": (self.simulated.ttft_s["p90"], self.real.ttft_s["p90"]),
            "ITL p50": (self.simulated.itl_s["p50"], self.real.itl_s["p50"]),
            "tokens/s": (self.simulated.output_tokens_s, self.real.output_tokens_s),
        }
        return {name: simulated / real - 1.0 for name, (simulated, real) in pairs.items()}


class StepWatch:
    """What each step of an engine had to do, beside the seconds that it took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._work: dict[int, StepWork] = {}
        policy = engine._loop.policy
        plan = policy.plan

        def watched(now: float) -> Schedule:
            schedule = plan(now)
            if schedule:
                self._work[engine.stats().steps] = StepWork.of(schedule)
            return schedule

        policy.plan = watched  # type: ignore[method-assign]

    def take(self) -> tuple[list[StepWork], list[float]]:
        """Work and seconds of the steps since the last call, as far as the engine remembers them."""
        records = self._engine.recent_steps()
        work, seconds = [], []
        for record, following in zip(records, [*records[1:], None], strict=True):
            if record.id in self._work:
                ended_s = record.started_s + record.total_s
                is_followed = following is not None and following.started_s - ended_s < _GAP_S
                work.append(self._work[record.id])
                seconds.append((following.started_s if following is not None and is_followed else ended_s) - record.started_s)
        self._work.clear()
        return work, seconds


_salts = count()


async def replay(engine: Engine, arrivals: Sequence[Arrival], vocab_size: int) -> tuple[list[Outcome], float]:
    """The workload on the real engine, each request at its time: outcomes, and seconds to the last token."""
    first = next(_salts) * 10_000_000  # a run must not find the prompts of the one before in the cache
    prompts = [replace(arrival, pieces=tuple(first + piece for piece in arrival.pieces)).prompt_ids(vocab_size) for arrival in arrivals]
    started_s = time.monotonic()

    async def one(arrival: Arrival, prompt: tuple[int, ...]) -> Outcome:
        await asyncio.sleep(max(0.0, started_s + arrival.time_s - time.monotonic()))
        outcome = Outcome(arrival)
        sampling = SamplingParams(temperature=0.0, max_tokens=arrival.num_output, ignore_eos=True)
        async for event in engine.stream(prompt, sampling):
            if isinstance(event, Delta):
                outcome.token_s += [time.monotonic() - started_s] * len(event.token_ids)
            else:
                outcome.num_cached = event.usage.cached_tokens
        return outcome

    outcomes = await asyncio.gather(*map(one, arrivals, prompts))
    return outcomes, max(outcome.token_s[-1] for outcome in outcomes)


async def calibrate(engine: Engine, vocab_size: int, origin: str) -> tuple[CostModel, float]:
    """Fit a cost model to bursts of several sizes. Returns it with its median relative error on the steps that it was fitted to."""
    watch = StepWatch(engine)
    await replay(engine, synthetic(4, 1e6, prompt=(50, 90), output=(2, 4), seed=99), vocab_size)  # warm
    watch.take()
    work: list[StepWork] = []
    seconds: list[float] = []
    for seed, (number, prompt, output) in enumerate(
        [(1, (64, 64), (40, 40)), (4, (16, 300), (20, 40)), (12, (16, 200), (10, 40)), (32, (8, 120), (10, 30)), (6, (200, 400), (4, 12))]
    ):
        await replay(engine, synthetic(number, 1e6, prompt=prompt, output=output, seed=seed), vocab_size)
        for taken, all_of in zip(watch.take(), (work, seconds), strict=True):
            all_of.extend(taken)  # type: ignore[arg-type]
    cost = CostModel.fit(work, seconds, origin=origin)
    return cost, statistics.median(abs(error) for error in cost.relative_errors(work, seconds))


async def run(options: argparse.Namespace, engine: Engine) -> list[Check]:
    vocab_size = 50000 if options.shape else 500
    cost, error = await calibrate(engine, vocab_size, f"steps of {engine.name}, {engine.mode}, measured by {Path(__file__).name}")
    print(f"cost model: {cost}\nmedian error on the steps that it was fitted to: {error:.1%}")
    cost.write(options.cost_model)
    arrivals = scale(read_trace(options.trace), length=options.length, limit=options.requests)
    limits, objective = engine._limits, Objective()
    at_once = simulate(scale(arrivals, rate=1e9), limits, cost)
    checks = []
    for load in options.load:
        rate = arrivals[-1].time_s / at_once.duration_s * load
        workload = scale(arrivals, rate=rate)
        simulated = simulate(workload, limits, cost)
        outcomes, duration_s = await replay(engine, workload, vocab_size)
        check = Check(load, Report.of(outcomes, duration_s, objective), Report.of(simulated.outcomes, simulated.duration_s, objective))
        checks.append(check)
        for name, report in (("real", check.real), ("simulated", check.simulated)):
            print(
                f"load {load:g} {name:9}: TTFT p50 {report.ttft_s['p50']:.3f} s, p90 {report.ttft_s['p90']:.3f} s; "
                f"ITL p50 {report.itl_s['p50'] * 1e3:.1f} ms; {report.output_tokens_s:.1f} tokens/s; {report.duration_s:.1f} s"
            )
        print("  simulated against real: " + ", ".join(f"{name} {error:+.0%}" for name, error in check.errors().items()))
    return checks


def main() -> int:
    """Returns the exit status: 0 if median time to first token and throughput agree within the target at every load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--shape", default="pythia-160m", help="random weights of a known shape (benchmarks.serving.shapes)")
    parser.add_argument("--model", help="a checkpoint's address, instead of a shape")
    parser.add_argument("--weights", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--length", type=float, default=0.1, help="times as many tokens as in the trace")
    parser.add_argument("--load", type=float, nargs="+", default=[0.5, 1.5], help="rates, as shares of the throughput of all at once")
    parser.add_argument("--cost-model", type=Path, default=Path("cost.json"), help="file to write")
    options = parser.parse_args()
    import torch

    from benchmarks.serving.shapes import model_folder

    if options.model:
        options.shape = None
    address = options.model or str(model_folder(options.shape))
    engine = Engine.load(address, config=EngineConfig(kv_tokens=32768), dtype=getattr(torch, options.weights))
    engine.name = options.shape or Path(address).name

    async def all_of() -> list[Check]:
        async with engine:
            return await run(options, engine)

    checks = asyncio.run(all_of())
    path = keep(
        "simulator-check",
        {
            **setting("benchmarks.serving.simulator_check", ("tripod", "torch")),
            "trace": options.trace.name,
            "cost_model": asdict(CostModel.read(options.cost_model)),
            "checks": [
                {"load": check.load, "errors": check.errors(), "real": asdict(check.real), "simulated": asdict(check.simulated)}
                for check in checks
            ],
        },
    )
    print(f"wrote {path} and {options.cost_model}")
    is_within = all(abs(check.errors()[name]) <= TARGET for check in checks for name in ("TTFT p50", "tokens/s"))
    print(f"{'within' if is_within else 'NOT within'} {TARGET:.0%} in median time to first token and in throughput")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
