"""The seeded small share of the campaign `exactness`: every path, on every route, against transformers and against itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from benchmarks.campaigns.exactness import MODELS, ROUTES, SPARSE_ROUTES, Judge, RouteCase, run_schedule

from tripod.ops.kernels.cpu import library

MODEL_OF = {"f32": "gpt_neox", "bf16": "qwen3", "int8": "llama", "int4": "llama"}  # the campaign runs all of them on all routes
NATIVE = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


def case(route: RouteCase, name: str) -> object:
    return pytest.param(route, name, id=f"{name}, {route.name}", marks=[NATIVE] if route.kernels == "native" else [])


def sparse_model_of(route: RouteCase) -> str:
    """Where something is rounded, only a router that is sure of itself chooses as transformers' does."""
    return "mixtral" if route.weight_format == "f32" and route.kv_cache_dtype is None else "mixtral-sure"


CASES = [case(route, MODEL_OF[route.weight_format]) for route in ROUTES]
SPARSE_CASES = [case(route, sparse_model_of(route)) for route in SPARSE_ROUTES if route.kernels == "native" or route.weight_format == "f32"]
SEEDS = {"mixtral": (0, 5)}  # of 0 and 3 together, too many rows of this router are unsure


@cache
def judge(name: str) -> Judge:
    return Judge(MODELS[name]())


@pytest.mark.campaign
@pytest.mark.parametrize(("route", "name"), [*CASES, *SPARSE_CASES])
def test_every_row_of_a_random_schedule_is_transformers_and_the_same_bits_on_every_path(route: RouteCase, name: str) -> None:
    seeds = SEEDS.get(name, (0, 3))  # many at once; few blocks
    if route.expert_cache is not None:  # with all experts in memory first, to have their bits
        assert not any(run_schedule(name, judge(name), replace(route, expert_cache=None), seed).failures for seed in seeds)
    outcomes = [run_schedule(name, judge(name), route, seed) for seed in seeds]
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
    for what in ("num_cached_tokens", "num_preemptions", "num_forks", "num_copies", "num_cut"):
        assert sum(getattr(outcome, what) for outcome in outcomes) > 0, f"without any {what} the test shows less than it says"
    assert (sum(outcome.num_again for outcome in outcomes) > 0) == route.batch_invariant
    assert max(outcome.most_requests for outcome in outcomes) > 8
    assert sum(outcome.num_unsure for outcome in outcomes) <= 0.01 * sum(outcome.num_rows for outcome in outcomes)
