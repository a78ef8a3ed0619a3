"""The promises of the campaigns `soak`, `drain`, `overload` and `timings`, in a seeded small share; and the arithmetic that they judge by.

The small shares judge what was counted. How fast it went is judged by the campaigns at full size, on a machine that does nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.campaigns import drain, overload, soak, timings
from benchmarks.campaigns.served_model import served, tiny_model
from benchmarks.campaigns.timings import bucket_quantile

from tripod.serving.workload import TraceRow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_positions=512)


@pytest.mark.campaign
def test_a_soak_ends_every_request_and_holds_nothing_at_its_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "VOCAB_SIZE", 250)  # of the tiny model
    rows = [TraceRow(arrival_s=0.0, num_prompt_tokens=300 + 40 * (i % 50), num_output_tokens=50 + 11 * (i % 40)) for i in range(150)]
    result = soak.run(soak.asks_of(rows, seed=0), model, concurrency=24, fail_every=20, seed=0)
    lost = [failure for failure in result["failures"] if "memory" not in failure]  # so short a run is all warm-up
    assert lost == []
    assert result["ending"]["failed_steps"] > 0
    assert result["ends"]["hung up"] > 20
    assert result["ends"]["answered"] > 20


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [0, 1])  # a long bound and a short one
def test_sigterm_under_load_loses_nobody_who_was_let_in(model: Path, seed: int) -> None:
    result = drain.run_round(seed, model, concurrency=8)
    assert result["failures"] == []
    assert result["ending"]["admitted"] > 0


@pytest.mark.alone
@pytest.mark.campaign
def test_five_times_too_much_is_refused_at_the_door_and_shared_by_tenant(model: Path) -> None:
    result = overload.run(model, loads=(5.0,), seconds=1.5, seed=0)
    row = result["rows"][0]
    assert row["failed"] == 0, row["errors"]
    assert row["rejected"] > row["ok"] > overload.MAX_RUNNING
    assert row["server_reject_p50_s"] < 0.010
    assert row["jain"] > 0.7  # so short a run is half filling and half emptying of the queue; 0.2 is one tenant having it all
    assert result["ending"]["failed_steps"] == 0


@pytest.mark.campaign
def test_the_histograms_of_the_server_count_what_its_clients_counted(tmp_path: Path) -> None:
    with served(timings.model_of_work(tmp_path)) as server:
        run = timings.run_load(server, num_requests=24, rate=8.0, seed=0)
        rows = timings.compare(server, run)
        samples = server.metrics()
    assert samples["tripod_time_to_first_token_seconds_count"] == 24
    assert samples["tripod_inter_token_latency_seconds_count"] == sum(len(outcome.gaps_s) for outcome in run.outcomes) == 24 * 31
    means = {row["name"]: row["difference"] for row in rows if row["statistic"] == "mean"}
    assert all(abs(difference) < 0.25 for difference in means.values()), means


def test_a_quantile_is_read_off_buckets_as_prometheus_does() -> None:
    buckets = [(1.0, 10.0), (2.0, 30.0), (4.0, 40.0), (float("inf"), 40.0)]
    assert bucket_quantile(buckets, 0.5) == 1.5  # the 20th of 40: half of the way through the second bucket
    assert bucket_quantile(buckets, 0.875) == 3.0
