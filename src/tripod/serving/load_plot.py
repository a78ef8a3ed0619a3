"""Runs of the load generator, drawn. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tripod.errors import MissingExtraError
from tripod.serving.load import Run


def draw(runs: Sequence[Run], rates: Sequence[float | None], reports: Sequence[dict[str, Any]], path: Path) -> None:
    """One run: each request's latencies over time. Several: latencies and goodput over the rate that was asked for.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots", "drawing a load") from error
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    if len(runs) == 1:
        for label, name in (("to first token", "ttft_s"), ("to last token", "latency_s")):
            ok = [outcome for outcome in runs[0].outcomes if outcome.is_ok]
            above.scatter([o.due_s for o in ok], [getattr(o, name) for o in ok], s=8, label=label)
        rejected = [outcome for outcome in runs[0].outcomes if outcome.status in (429, 503)]
        below.scatter([o.due_s for o in rejected], [1000 * (o.end_s - o.sent_s) for o in rejected], s=8, color="tab:red")
        below.set(xlabel="asked at, s", ylabel="to a refusal, ms")
    else:
        for name, label in (("ttft_s", "to first token"), ("itl_s", "between tokens")):
            for key, style in (("p50", "-"), ("p99", "--")):
                above.plot(rates, [one[name][key] if one[name] else None for one in reports], style, marker="o", label=f"{label}, {key}")
        below.plot(rates, [one["goodput_requests_per_s"] for one in reports], marker="o", label="goodput")
        below.plot(rates, [one["requests_per_s"] for one in reports], marker="o", label="answered")
        below.set(xlabel="asked for, requests/s", ylabel="requests/s")
        below.legend()
    above.set(ylabel="s", yscale="log")
    above.legend()
    figure.savefig(path)
