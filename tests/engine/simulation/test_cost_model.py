"""A step's cost: the formula, and the fit that finds it again in measured steps."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.policy.test_policy import ask
from tripod.engine.simulation.cost_model import CostModel, StepWork
from tripod.errors import ConfigError, DatasetError

MODEL = CostModel(overhead_s=2e-3, request_s=1e-4, weights_s=8e-3, token_s=5e-4, context_s=1e-6, pair_s=2e-7, origin="made up")


def test_work_counts_contexts_of_decodes_and_pairs_of_prompts() -> None:
    decode, chunk = ask("decode", range(9), 5), ask("chunk", range(20), 5)
    decode.output_ids, decode.num_computed_tokens, chunk.num_computed_tokens = [1], 9, 10
    work = StepWork.of({decode: 1, chunk: 3})
    assert work == StepWork(num_requests=2, num_tokens=4, num_context=10, num_pairs=11 + 12 + 13)


def test_few_tokens_cost_the_reading_of_the_weights_and_many_their_arithmetic() -> None:
    few = StepWork(num_requests=1, num_tokens=1, num_context=0, num_pairs=0)
    assert MODEL.step_s(few) == pytest.approx(2e-3 + 1e-4 + 8e-3)
    assert MODEL.step_s(replace(few, num_tokens=100)) == pytest.approx(2e-3 + 1e-4 + 5e-2)


def test_limits_give_the_bounds_of_a_machine() -> None:
    cost = CostModel.of_limits(num_parameters=1e8, bytes_per_parameter=2, num_layers=10, hidden_size=500, gigabytes_s=20, gigaflops=400)
    assert cost.weights_s == pytest.approx(0.01)  # 200 MB at 20 GB/s
    assert cost.token_s == pytest.approx(5e-4)  # 2e8 operations at 4e11 a second
    assert cost.context_s == pytest.approx(1e-6)  # a key and a value of 500 numbers in 10 layers: 20 kB
    assert "not measured" in cost.origin


def test_a_fit_finds_the_costs_behind_noisy_steps() -> None:
    chance = random.Random(1)
    work = []
    for _ in range(400):
        num_requests, chunk = chance.randint(1, 32), chance.choice([0, 0, 100, 400])
        pairs = chunk * chance.randint(1, 500)
        work.append(
            StepWork(
                num_requests=num_requests,
                num_tokens=num_requests + chunk,
                num_context=num_requests * chance.randint(10, 900),
                num_pairs=pairs,
            )
        )
    seconds = [MODEL.step_s(step) * chance.uniform(0.9, 1.1) for step in work]
    fitted = CostModel.fit(work, seconds, origin="noisy")
    assert max(abs(fitted.relative_errors(work, [MODEL.step_s(step) for step in work]))) < 0.05
    assert fitted.token_s == pytest.approx(MODEL.token_s, rel=0.05)
    assert fitted.pair_s == pytest.approx(MODEL.pair_s, rel=0.1)


def test_a_model_survives_its_file_and_another_file_is_refused(tmp_path: Path) -> None:
    MODEL.write(tmp_path / "cost.json")
    assert CostModel.read(tmp_path / "cost.json") == MODEL
    (tmp_path / "other.json").write_text('{"speed": 3}', "utf-8")
    with pytest.raises(DatasetError, match=r"other\.json is not a cost model"):
        CostModel.read(tmp_path / "other.json")


def test_costs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="token_s=-1"):
        replace(MODEL, token_s=-1.0)
    with pytest.raises(ConfigError, match="takes no time"):
        CostModel(overhead_s=0.0, request_s=0.0, weights_s=0.0, token_s=0.0, context_s=0.0, pair_s=1.0, origin="")
    with pytest.raises(DatasetError, match="at least 16"):
        CostModel.fit([], [], origin="")
