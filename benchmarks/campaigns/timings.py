"""What the server's histograms say against what its clients measured themselves.

    python -m benchmarks.campaigns timings [--requests 300] [--rate 4] [--seed 0]

A seeded model of 12 layers answers, whose steps are long enough to be measured from outside; requests come at random times, at about
half of what the server can do. Its tokens are ASCII, so each is a chunk. Time to first token, between tokens, to the last token and of
decoding: mean, median and 90th percentile. Queue and prefill, which no client sees apart, are the engine's part of the time to the
first token, and that part is told. The clients' clocks start when a request is handed to the socket and stop when its bytes are read,
in a process of their own; the server's quantiles are read off the buckets of /metrics, as Prometheus does. The promise: they agree
within 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.campaigns.served_model import MODEL, Served, served, tiny_model
from benchmarks.setting import keep, setting
from tripod.serving.load import Run, Target, open_loop
from tripod.serving.load_report import quantile
from tripod.serving.workload import poisson, synthetic

TOLERANCE = 0.05


def model_of_work(folder: Path) -> Path:
    """A model whose steps take some ten milliseconds on two cores, and whose every token is a character."""
    return tiny_model(folder, max_positions=512, hidden_size=1024, num_layers=12, is_ascii=True)


def histogram(samples: Mapping[str, float], name: str) -> tuple[float, list[tuple[float, float]]]:
    """Mean, and the cumulative buckets."""
    base = f"tripod_{name}_seconds"
    prefix = f'{base}_bucket{{le="'
    buckets = [(float(key[len(prefix) : -2].replace("+Inf", "inf")), value) for key, value in samples.items() if key.startswith(prefix)]
    return samples[f"{base}_sum"] / samples[f"{base}_count"], sorted(buckets)


def bucket_quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """As Prometheus' histogram_quantile: linear inside the bucket."""
    rank = share * buckets[-1][1]
    below, count_below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > count_below:
            return below + (bound - below) * (rank - count_below) / (count - count_below)
        below, count_below = bound, count
    raise AssertionError("the last bucket holds everything")


def measured(run: Run) -> dict[str, list[float]]:
    """The clients' own numbers. A chunk is a token here, or the gaps of the two sides would not be the same ones."""
    ok = [outcome for outcome in run.outcomes if outcome.is_ok]
    assert all(outcome.num_chunks == outcome.num_output_tokens for outcome in ok), "a chunk of several tokens, or a token without one"
    gaps = [gap for outcome in ok for gap in outcome.gaps_s]
    return {
        "time_to_first_token": [o.first_s - o.sent_s for o in ok if o.first_s is not None],
        "inter_token_latency": gaps,
        "e2e_request_latency": [o.end_s - o.sent_s for o in ok],
        "request_decode_time": [o.last_s - o.first_s for o in ok if o.last_s is not None and o.first_s is not None],
    }


def compare(server: Served, run: Run) -> list[dict[str, Any]]:
    """One row for each histogram and statistic."""
    samples = server.metrics()
    clients = measured(run)
    rows = []
    for name, values in clients.items():
        mean, buckets = histogram(samples, name)
        ordered = sorted(values)
        for statistic, theirs, ours in (
            ("mean", fmean(ordered), mean),
            ("p50", quantile(ordered, 0.5), bucket_quantile(buckets, 0.5)),
            ("p90", quantile(ordered, 0.9), bucket_quantile(buckets, 0.9)),
        ):
            rows.append(_row(name, statistic, theirs, ours))
    return rows


def engine_share(server: Served, run: Run) -> float:
    """Queue and prefill, as a share of the clients' time to the first token; the rest is HTTP and the way between threads."""
    samples = server.metrics()
    before_first = sum(histogram(samples, f"request_{name}_time")[0] for name in ("queue", "prefill"))
    return before_first / fmean(measured(run)["time_to_first_token"])


def _row(name: str, statistic: str, theirs: float, ours: float) -> dict[str, Any]:
    return {"name": name, "statistic": statistic, "client_s": theirs, "server_s": ours, "difference": ours / theirs - 1.0}


def run_load(server: Served, *, num_requests: int, rate: float, seed: int) -> Run:
    """Requests at random times; each takes a connection that is open, if there is one."""
    asks = synthetic(num_requests, num_prompt_tokens=128, num_output_tokens=32, seed=seed, vocab_size=250)
    return asyncio.run(open_loop(Target(url=server.url, model=MODEL), poisson(asks, rate=rate, seed=seed)))


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaigns timings", description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tripod-timings-") as folder, served(model_of_work(Path(folder))) as server:
        run = run_load(server, num_requests=options.requests, rate=options.rate, seed=options.seed)
        rows, share = compare(server, run), engine_share(server, run)
        server.stop()
    path = keep("timings", {**setting("benchmarks.campaigns", ("torch", "starlette", "uvicorn")), "rows": rows, "engine_share": share})
    for row in rows:
        print(
            f"{row['name']:22} {row['statistic']:5} client {1000 * row['client_s']:9.3f} ms  server {1000 * row['server_s']:9.3f} ms  "
            f"{row['difference']:+.2%}{'  FAILED' if abs(row['difference']) > TOLERANCE else ''}"
        )
    print(f"queue and prefill are {share:.1%} of the clients' time to the first token")
    print(f"raw: {path}")
    return 1 if any(abs(row["difference"]) > TOLERANCE for row in rows) else 0
