"""Simulated runs side by side, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from tripod.engine.simulation.report import Report
from tripod.engine.simulation.simulator import Outcome, Simulation
from tripod.errors import MissingExtraError

Runs = Mapping[str, Sequence[tuple[float, Simulation, Report]]]  # by policy: (rate, run, report), in order of the rate


def plot_runs(runs: Runs, path: Path, *, title: str) -> None:
    """Goodput, latencies, fairness and cache hits against the rate; and how latencies spread in the densest run of each policy.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots", "drawing a simulation") from error

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"simulated, not measured: {title}")
    (goodput, ttft, itl), (fairness, hits, spread) = figure.subplots(2, 3)
    for policy, entries in runs.items():
        rates = [rate for rate, _, _ in entries]
        reports = [report for _, _, report in entries]
        goodput.plot(rates, [report.goodput for report in reports], "o-", label=policy)
        fairness.plot(rates, [report.fairness for report in reports], "o-", label=policy)
        hits.plot(rates, [report.cache_hit_rate for report in reports], "o-", label=policy)
        for axis, latencies in ((ttft, [report.ttft_s for report in reports]), (itl, [report.itl_s for report in reports])):
            [line] = axis.plot(rates, [latency["p50"] for latency in latencies], "o-", label=f"{policy}, median")
            axis.plot(rates, [latency["p99"] for latency in latencies], "o--", color=line.get_color(), label=f"{policy}, 99 %")
        outcomes = entries[-1][1].outcomes
        for name, values, style in (("to first token", _ttft_s(outcomes), "-"), ("between tokens", _itl_s(outcomes), ":")):
            if values:
                spread.plot(values, [(index + 1) / len(values) for index in range(len(values))], style, label=f"{policy}, {name}")
    for axis, name, unit in (
        (goodput, "goodput", "requests/s that met the objective"),
        (ttft, "time to first token", "s"),
        (itl, "time between tokens", "s"),
        (fairness, "fairness between tenants", "Jain's index"),
        (hits, "prefix cache", "share of prompt tokens found"),
    ):
        axis.set(title=name, xlabel="rate, times the workload's", ylabel=unit, ylim=(0, None))
        axis.legend(fontsize=7)
    spread.set(title="latencies at the highest rate", xlabel="s", ylabel="share of requests or tokens", xscale="log")
    spread.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _ttft_s(outcomes: Sequence[Outcome]) -> list[float]:
    return sorted(outcome.token_s[0] - outcome.arrival.time_s for outcome in outcomes if outcome.token_s)


def _itl_s(outcomes: Sequence[Outcome]) -> list[float]:
    return sorted(later - earlier for outcome in outcomes for earlier, later in pairwise(outcome.token_s))
