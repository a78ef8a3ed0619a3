"""`tripod simulate`: a trace through the engine's policy, on the clock of a cost model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.engine.policy.config import PolicyConfig
    from tripod.engine.simulation.cost_model import CostModel
    from tripod.engine.simulation.report import Report
    from tripod.engine.simulation.workload import Arrival

POLICIES = {  # name -> what differs from the engine's own policy
    "tripod": {},
    "fcfs": {"fair": False, "prefix_cache": False},
    "no-cache": {"prefix_cache": False},
    "unfair": {"fair": False},
}


def simulate(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Azure's .csv, Mooncake's .jsonl, or 'synthetic' (made, seeded).")],
    policy: Annotated[list[str] | None, typer.Option("--policy", help=f"{', '.join(POLICIES)}; several are compared.")] = None,
    cost_model: Annotated[
        Path | None, typer.Option("--cost-model", help="What steps cost, as measured by benchmarks/serving/simulator_check.py.")
    ] = None,
    rate: Annotated[list[float] | None, typer.Option("--rate", help="Times as many requests a second; several are swept.")] = None,
    length: Annotated[float, typer.Option("--length", help="Times as many tokens in prompts and answers.")] = 1.0,
    requests: Annotated[int | None, typer.Option("--requests", min=1, help="Only the first so many.")] = None,
    kv_tokens: Annotated[int, typer.Option("--kv-tokens", min=1, help="The pool of keys and values.")] = 262_144,
    max_requests: Annotated[int, typer.Option("--max-requests", min=1, help="Running at once.")] = 64,
    max_batch_tokens: Annotated[int, typer.Option("--max-batch-tokens", min=1, help="Computed in one step.")] = 512,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=1, help="Requests in the queue; more are refused.")] = 4096,
    max_waiting_tokens: Annotated[int | None, typer.Option("--max-waiting-tokens", min=1, help="The same in tokens.")] = None,
    max_wait: Annotated[float | None, typer.Option("--max-wait", help="Seconds of waiting that are foreseen; more are refused.")] = None,
    ttft: Annotated[float, typer.Option("--ttft", help="Objective: seconds to the first token.")] = 2.0,
    itl: Annotated[float, typer.Option("--itl", help="Objective: mean seconds between tokens.")] = 0.2,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture (.png, .svg or .pdf).")] = None,
) -> None:
    """Simulate serving a trace: goodput, time to first token, time between tokens, fairness, cache hits.

    Runs the engine's own policy, step by step; only the time of a step is computed instead of taken. All numbers are simulated.
    """
    import time

    from tripod.cli.picture import check_picture
    from tripod.cli.terminal import note
    from tripod.engine.policy.config import CHUNK_BESIDE_DECODES, PolicyConfig
    from tripod.engine.simulation.plot import plot_runs
    from tripod.engine.simulation.report import Objective, Report
    from tripod.engine.simulation.simulator import Simulation
    from tripod.engine.simulation.simulator import simulate as run
    from tripod.engine.simulation.workload import scale
    from tripod.errors import ConfigError

    cost = _cost(cost_model)
    note(f"cost of a step: {cost.origin}")
    arrivals = _arrivals(trace)
    objective = Objective(ttft_s=ttft, itl_s=itl)
    names = policy or ["tripod"]
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"there is no policy {name!r}; give one of {', '.join(POLICIES)}")
    workloads = {factor: scale(arrivals, rate=factor, length=length, limit=requests) for factor in sorted(rate or [1.0])}
    if plot is not None:
        check_picture(plot)
    runs: dict[str, list[tuple[float, Simulation, Report]]] = {}
    typer.echo("simulated, not measured")
    typer.echo(_row(*_COLUMNS))
    for name in names:
        for factor, workload in workloads.items():
            base = PolicyConfig(
                num_blocks=-(-kv_tokens // 16), block_size=16, max_context=kv_tokens, max_batch_tokens=max(max_batch_tokens, max_requests),
                max_num_requests=max_requests, max_num_waiting=max_waiting, max_waiting_tokens=max_waiting_tokens, max_wait_s=max_wait,
                chunk_beside_decodes=CHUNK_BESIDE_DECODES,
            )  # fmt: skip
            started = time.monotonic()
            result = run(workload, _variant(base, name), cost)
            report = Report.of(result.outcomes, result.duration_s, objective)
            note(f"{name} at {factor:g}x: {result.duration_s:.0f} s of {result.num_steps} steps in {time.monotonic() - started:.1f} s")
            runs.setdefault(name, []).append((factor, result, report))
            typer.echo(_row(name, f"{factor:g}x", *_cells(report)))
    if plot is not None:
        plot_runs(runs, plot, title=f"{Path(trace).name}, {cost.origin}")
        note(f"wrote {plot}")


_COLUMNS = (
    "policy",
    "rate",
    "done",
    "refused",
    "expired",
    "good",
    "good/s",
    "TTFT p50",
    "p99",
    "ITL p50",
    "p99",
    "tok/s",
    "Jain",
    "cached",
)


def _cells(report: Report) -> list[str]:
    counts = [f"{count}" for count in (report.num_finished, report.num_refused, report.num_expired)]
    latencies = [f"{latency[percent]:.3f}" for latency in (report.ttft_s, report.itl_s) for percent in ("p50", "p99")]
    shares = [f"{report.output_tokens_s:.0f}", f"{report.fairness:.3f}", f"{report.cache_hit_rate:.1%}"]
    return [*counts, f"{report.good_share:.0%}", f"{report.goodput:.2f}", *latencies, *shares]


def _row(name: str, *cells: str) -> str:
    return f"{name:10}" + "".join(f"{cell:>9}" for cell in cells)


def _variant(config: PolicyConfig, name: str) -> PolicyConfig:
    from dataclasses import replace

    return replace(config, **POLICIES[name])


def _cost(path: Path | None) -> CostModel:
    from tripod.engine.simulation.cost_model import CostModel

    if path is not None:
        return CostModel.read(path)
    return CostModel.of_limits(
        num_parameters=124e6, bytes_per_parameter=2, num_layers=12, hidden_size=768, gigabytes_s=38, gigaflops=800
    )  # Pythia-160m in bfloat16 on two server cores


def _arrivals(trace: str) -> list[Arrival]:
    from tripod.engine.simulation.workload import read_trace, synthetic

    if trace == "synthetic":
        tenants = (("heavy", 20.0), ("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0))
        return synthetic(2000, 4.0, prompt=(32, 256), output=(16, 128), num_shared=256, tenants=tenants)
    return read_trace(Path(trace))
