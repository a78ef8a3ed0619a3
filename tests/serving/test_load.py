"""The load generator against a real server: what it says must be what the server and the engine know."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.serving.live_server import LiveServer, live_server
from tests.serving.test_raw_http import is_idle, wait_until
from tests.serving.tiny import NAME
from tripod.engine.engine import Engine
from tripod.sampling import SamplingParams
from tripod.serving.app import build_app
from tripod.serving.config import ServerConfig
from tripod.serving.load import Outcome, Target, closed_loop, open_loop
from tripod.serving.load_report import Objective, jain, max_min_fair, report
from tripod.serving.workload import poisson, synthetic

ASKS = synthetic(12, num_prompt_tokens=9, num_output_tokens=6, seed=0, vocab_size=256)


def test_a_run_brings_the_engines_own_tokens_in_a_closed_loop_and_in_an_open_one(server: LiveServer, engine: Engine) -> None:
    async def runs() -> None:
        target = Target(url=server.url, model=NAME)
        closed = await closed_loop(target, ASKS, concurrency=3)
        opened = await open_loop(target, poisson(ASKS, rate=200.0, seed=0))
        sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
        for outcome, ask in zip(closed.outcomes, ASKS, strict=True):
            assert outcome.is_ok, outcome
            assert outcome.text == (await engine.generate(ask.prompt_ids, sampling)).text
            assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (9, 6)
        assert closed.digest == opened.digest
        assert all(outcome.sent_s >= ask.arrival_s for outcome, ask in zip(opened.outcomes, poisson(ASKS, rate=200.0, seed=0), strict=True))
        counted = report(closed, Objective(latency_s=0.0))
        assert (counted["ok"], counted["failed"], counted["goodput_requests_per_s"]) == (12, 0, 0.0)
        assert counted["overhead"]["model_s"] > 0
        whole = sum(counted["overhead"].values())
        assert whole == pytest.approx(sum(o.end_s - o.sent_s for o in closed.outcomes) / 12)

    asyncio.run(runs())


def test_a_client_that_hangs_up_and_one_that_is_refused_are_told_apart(engine: Engine) -> None:
    async def run() -> None:
        target = Target(url=server.url, model=NAME)
        left = [replace(ASKS[0], max_tokens=480, abort_after_chunks=3)]
        [outcome] = (await closed_loop(target, left, concurrency=1)).outcomes
        assert outcome.is_aborted
        assert outcome.error is None
        refused = [replace(ASKS[0], tenant="a", max_tokens=400) for _ in range(3)]
        outcomes = (await open_loop(target, refused)).outcomes
        assert sorted(outcome.status for outcome in outcomes) == [200, 429, 429]
        assert all(outcome.retry_after_s for outcome in outcomes if outcome.status == 429)

    with live_server(build_app(engine, config=ServerConfig(max_tenant_requests=1))) as server:
        asyncio.run(run())
    assert wait_until(lambda: is_idle(engine))


def test_an_objective_counts_only_what_came_whole_and_in_time() -> None:
    outcome = Outcome(index=0, tenant="", due_s=1.0, sent_s=1.1, status=200, first_s=1.5, last_s=2.5, end_s=2.6, num_output_tokens=11)
    assert (outcome.ttft_s, outcome.itl_s) == (pytest.approx(0.5), pytest.approx(0.1))
    assert Objective(ttft_s=0.5, itl_s=0.11, latency_s=1.7).is_met(outcome)
    for late in (Objective(ttft_s=0.4), Objective(itl_s=0.09), Objective(latency_s=1.5)):
        assert not late.is_met(outcome)
    outcome.error = "cut"
    assert not Objective().is_met(outcome)


def test_fairness_by_hand() -> None:
    assert jain([1, 1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / 42)
    assert max_min_fair([20, 1, 1], 12) == [10, 1, 1]
    assert max_min_fair([20, 5, 4], 12) == [4, 4, 4]
    assert max_min_fair([1, 2], 12) == [1, 2]
