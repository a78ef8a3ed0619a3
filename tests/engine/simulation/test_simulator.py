"""Whole workloads through the policy on a simulated clock. What these tests claim of speed is simulated, not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tripod.engine.policy.config import PolicyConfig
from tripod.engine.simulation.cost_model import CostModel
from tripod.engine.simulation.plot import plot_runs
from tripod.engine.simulation.report import Objective, Report, fairness, jain, max_min_shares
from tripod.engine.simulation.simulator import Outcome, Simulation, simulate
from tripod.engine.simulation.workload import Arrival, read_trace, scale, synthetic

UNIT = CostModel(overhead_s=1.0, request_s=0.0, weights_s=0.0, token_s=0.0, context_s=0.0, pair_s=0.0, origin="a second a step")
LIMITS = CostModel.of_limits(num_parameters=124e6, bytes_per_parameter=2, num_layers=12, hidden_size=768, gigabytes_s=38, gigaflops=800)
TENANTS = (("heavy", 20.0), ("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0))


def config(**more: Any) -> PolicyConfig:
    sizes = {"num_blocks": 16384, "block_size": 16, "max_context": 40_000, "max_batch_tokens": 512, "max_num_requests": 64}
    return PolicyConfig(**{**sizes, "max_num_waiting": 4096, **more})


def arrival(time_s: float, num_prompt: int, num_output: int, piece: int, **more: Any) -> Arrival:
    return Arrival(time_s=time_s, num_prompt=num_prompt, num_output=num_output, pieces=(piece,), piece_len=num_prompt, **more)


def test_tokens_come_at_the_times_that_can_be_worked_out_by_hand() -> None:
    arrivals = [arrival(0.0, 10, 3, 1), arrival(0.5, 4, 2, 2), arrival(20.0, 4, 1, 3)]
    run = simulate(arrivals, config(), UNIT)
    assert [outcome.token_s for outcome in run.outcomes] == [[1.0, 2.0, 3.0], [2.0, 3.0], [21.0]]
    assert (run.num_steps, run.duration_s) == (4, 21.0)


def test_what_came_late_is_refused_or_expires_and_is_counted() -> None:
    arrivals = [arrival(0.0, 4, 9, 1), *(arrival(0.1, 4, 1, piece, timeout_s=3.0) for piece in range(2, 6))]
    run = simulate(arrivals, config(max_num_requests=1, max_num_waiting=2), UNIT)
    assert [outcome.end for outcome in run.outcomes] == ["finished", "expired", "expired", "refused", "refused"]
    report = Report.of(run.outcomes, run.duration_s, Objective(ttft_s=1.0, itl_s=1.0))
    assert (report.num_finished, report.num_expired, report.num_refused, report.good_share) == (1, 2, 2, 0.2)


def test_a_report_counts_what_users_felt() -> None:
    slow, fast = Outcome(arrival(0.0, 6, 3, 1), token_s=[2.0, 2.5, 4.0]), Outcome(arrival(1.0, 4, 1, 2), token_s=[1.5], num_cached=4)
    report = Report.of([slow, fast], 4.0, Objective(ttft_s=2.0, itl_s=0.9))
    assert report.ttft_s["p50"] == pytest.approx(1.25)
    assert report.itl_s["p50"] == pytest.approx(1.0)
    assert (report.output_tokens_s, report.total_tokens_s, report.cache_hit_rate) == (1.0, 3.5, 0.4)
    assert report.good_share == 0.5  # the mean of 0.5 s and 1.5 s is more than 0.9 s


def test_jains_index_and_fair_shares_are_those_of_their_definitions() -> None:
    assert jain([1.0, 1.0, 1.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert max_min_shares(10.0, {"a": 2.0, "b": 4.0, "c": 50.0}) == {"a": 2.0, "b": 4.0, "c": 4.0}
    served = [Outcome(arrival(0.0, 1, 1, 1, tenant=tenant), token_s=[1.0]) for tenant in "ab"]
    refused = [Outcome(arrival(0.0, 1, 1, 1, tenant="b"), end="refused") for _ in range(9)]
    assert fairness([*served, *refused]) == 1.0  # each had two tokens of the four that were served


def test_a_shared_beginning_is_computed_once_and_answers_come_sooner() -> None:
    arrivals = synthetic(300, 8.0, prompt=(16, 64), output=(8, 16), num_shared=512)
    with_cache, without = (
        Report.of(run.outcomes, run.duration_s, Objective())
        for run in (simulate(arrivals, config(prefix_cache=is_on), LIMITS) for is_on in (True, False))
    )
    assert with_cache.cache_hit_rate > 0.9
    assert without.cache_hit_rate == 0.0
    assert with_cache.ttft_s["p50"] < 0.3 * without.ttft_s["p50"]


def test_goodput_holds_at_twice_and_five_times_the_capacity() -> None:
    """Simulated. The capacity is where goodput is greatest; some 10 requests a second on this cost model."""
    goodput = {}
    for factor in (0.9, 1.0, 1.1, 2.0, 5.0):
        arrivals = synthetic(int(600 * factor) + 300, 10.0 * factor, prompt=(32, 256), output=(16, 128), num_shared=256, seed=3)
        run = simulate(arrivals, config(max_wait_s=1.0), LIMITS)
        goodput[factor] = Report.of(run.outcomes, run.duration_s, Objective(ttft_s=2.0, itl_s=0.2)).goodput
    assert min(goodput[2.0], goodput[5.0]) >= 0.9 * max(goodput.values()), goodput
    arrivals = synthetic(900, 20.0, prompt=(32, 256), output=(16, 128), num_shared=256, seed=3)
    run = simulate(arrivals, config(), LIMITS)  # the control: without the bound on waiting, most answers come too late
    assert Report.of(run.outcomes, run.duration_s, Objective()).goodput < 0.5 * max(goodput.values())


@pytest.mark.parametrize("factor", [2.0, 5.0])
def test_tenants_are_served_alike_when_one_sends_twenty_times_as_much(factor: float) -> None:
    """Simulated."""
    arrivals = synthetic(int(700 * factor), 10.0 * factor, prompt=(32, 256), output=(16, 128), num_shared=256, tenants=TENANTS, seed=4)
    fair, unfair = (simulate(arrivals, config(fair=is_fair, max_num_waiting=64), LIMITS) for is_fair in (True, False))
    assert fairness(fair.outcomes) >= 0.95
    assert fairness(unfair.outcomes) < 0.95


def test_no_tenant_waits_for_another_ones_queue() -> None:
    arrivals = [*(arrival(0.0, 64, 32, piece, tenant="heavy") for piece in range(1, 200)), arrival(0.5, 64, 32, 999, tenant="light")]
    fair, unfair = (
        simulate(arrivals, config(max_num_requests=4, fair=is_fair), LIMITS).outcomes[-1].token_s[0] for is_fair in (True, False)
    )
    assert fair < 0.1 * unfair


def test_real_traces_run_to_their_end_with_every_block_back(shared_data: Path) -> None:
    folder = shared_data / "serving-traces"
    for name, length in (("AzureLLMInferenceTrace_conv.csv", 0.2), ("synthetic_trace.jsonl", 0.05)):
        arrivals = scale(read_trace(folder / name), length=length, limit=250)
        run = simulate(arrivals, config(num_blocks=600, max_batch_tokens=256), LIMITS)  # a pool that is short: some are preempted
        assert all(len(outcome.token_s) == outcome.arrival.num_output for outcome in run.outcomes if outcome.end == "finished")
        assert sum(outcome.end == "finished" for outcome in run.outcomes) >= 240
        if name.endswith(".jsonl"):
            assert sum(outcome.num_cached for outcome in run.outcomes) > 0


def test_a_simulation_is_a_function_of_its_arguments() -> None:
    arrivals = synthetic(100, 20.0, prompt=(8, 40), output=(2, 20), tenants=TENANTS)
    first, second = (simulate(arrivals, config(max_num_requests=8), LIMITS) for _ in range(2))
    assert [outcome.token_s for outcome in first.outcomes] == [outcome.token_s for outcome in second.outcomes]


def test_runs_are_drawn_and_say_that_they_are_simulated(tmp_path: Path) -> None:
    runs: dict[str, list[tuple[float, Simulation, Report]]] = {}
    for rate in (1.0, 2.0):
        run = simulate(synthetic(50, 5.0 * rate, prompt=(8, 40), output=(2, 20)), replace(config(), max_num_waiting=9), LIMITS)
        runs.setdefault("tripod", []).append((rate, run, Report.of(run.outcomes, run.duration_s, Objective())))
    path = tmp_path / "runs.svg"
    plot_runs(runs, path, title="test")
    assert "<!-- simulated, not measured: test -->" in path.read_text("utf-8")
