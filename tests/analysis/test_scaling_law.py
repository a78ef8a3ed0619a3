from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime

import tripod
from tests.training.conftest import MakeRecipe
from tripod.analysis.checkpoints import find_checkpoints
from tripod.analysis.published_plots import NON_EMBEDDING, lambada_losses
from tripod.analysis.scaling_law import ScalingLaw, _objective, fit_scaling_law
from tripod.analysis.scaling_laws import ScalingLaws
from tripod.analysis.study import run_study
from tripod.errors import ConfigError
from tripod.training.loop import train
from tripod.training.metrics import read_metrics
from tripod.training.presets import _PYTHIA

TRUTH = ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)  # Chinchilla's own
SIZES = (1e8, 3e8, 1e9, 3e9, 1e10)
TOKENS = tuple(np.geomspace(1e9, 3e11, 8))


def points(noise: float, seed: int = 0) -> tuple[list[float], list[float], list[float], list[float]]:
    rng = np.random.default_rng(seed)
    grid = [(size, tokens) for size in SIZES for tokens in TOKENS]
    losses = [float(TRUTH.loss(size, tokens) * math.exp(rng.normal(0, noise))) for size, tokens in grid]
    return [size for size, _ in grid], [tokens for _, tokens in grid], losses, [size for size, _ in grid]


def test_a_planted_law_is_found_again() -> None:
    sizes, tokens, losses, _ = points(noise=0.0)
    fit = fit_scaling_law(sizes, tokens, losses, num_draws=0)
    assert fit.law.irreducible == pytest.approx(1.69, abs=0.01)
    assert fit.law.alpha == pytest.approx(0.34, abs=0.005)
    assert fit.law.beta == pytest.approx(0.28, abs=0.005)
    assert fit.relative_error < 1e-4


def test_the_interval_holds_the_truth_and_grows_with_the_noise() -> None:
    narrow, wide = (fit_scaling_law(*(of := points(noise, seed=4))[:3], groups=of[3], num_draws=30) for noise in (0.002, 0.02))
    assert narrow.low.beta <= 0.28 <= narrow.high.beta
    assert wide.high.alpha - wide.low.alpha > 2 * (narrow.high.alpha - narrow.low.alpha)


def test_the_interval_is_over_series_whose_points_err_together() -> None:
    """One error a size, which all of its points share: drawn one by one they would make the interval too narrow."""
    rng = np.random.default_rng(3)
    sizes, tokens, losses, _ = points(noise=0.0)
    error = {size: math.exp(rng.normal(0, 0.02)) for size in SIZES}
    losses = [loss * error[size] for size, loss in zip(sizes, losses, strict=True)]
    alone, together = (fit_scaling_law(sizes, tokens, losses, groups=groups, num_draws=16) for groups in (None, sizes))
    assert together.high.alpha - together.low.alpha > 1.5 * (alone.high.alpha - alone.low.alpha)


def test_the_best_size_grows_with_compute_as_chinchilla_says() -> None:
    assert TRUTH.optimal_size_exponent == pytest.approx(0.452, abs=1e-3)  # 0.28 / (0.34 + 0.28), where N^-alpha and D^-beta fall alike
    compute = 6e20
    best = [min(np.geomspace(1e7, 1e12, 20_000), key=lambda size: TRUTH.loss(size, of / 6 / size)) for of in (compute, 100 * compute)]
    assert math.log(best[1] / best[0]) / math.log(100) == pytest.approx(TRUTH.optimal_size_exponent, abs=0.002)


def test_the_study_fits_validation_losses_over_parameters_without_embeddings(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    runs = {}
    for width in (16, 32):
        recipe = make_recipe(run=str(tmp_path / f"w{width}"), model={"hidden_size": width}, validation={"every": 1, "num_batches": 2})
        runs[width] = train(recipe).run
    checkpoints = find_checkpoints([str(run.folder) for run in runs.values()])
    table = tripod.run(run_study(ScalingLaws(num_draws=0, from_step=3), checkpoints, tmp_path / "out")).table
    found = {(row["series"], row["step"]): (row["parameters"], row["tokens"], row["loss"]) for row in table.where(kind="point")}
    expected = {}
    for width, run in runs.items():
        losses = {record["step"]: record["valid_loss"] for record in read_metrics(run.metrics_path) if "valid_loss" in record}
        parameters = 2 * (12 * width**2 + 13 * width) + 2 * width  # of two layers, as Pythia counts them
        expected |= {(f"w{width}", step): (parameters, step * 4 * 16, losses[step]) for step in run.steps if step >= 3}
    assert found == expected


def test_one_wild_point_hardly_moves_the_fit() -> None:
    sizes, tokens, losses, _ = points(noise=0.001)
    losses[7] *= 1.5
    assert fit_scaling_law(sizes, tokens, losses, num_draws=0).law.alpha == pytest.approx(0.34, abs=0.03)


def test_the_gradient_is_that_of_finite_differences() -> None:
    objective = _objective(np.array(points(noise=0.05)[:3]))
    at = np.array([0.3, 5.0, 5.5, 0.3, 0.25])
    assert objective(at)[1] == pytest.approx(approx_fprime(at, lambda x: objective(x)[0], 1e-6), rel=1e-3)


def test_points_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 points cannot fix the 5 parameters"):
        fit_scaling_law([1] * 5, [1] * 5, [1] * 5)
    with pytest.raises(ConfigError, match="step 0 has seen no tokens"):
        fit_scaling_law([1] * 6, [0] * 6, [1] * 6)
    for sizes, tokens in (([5] * 6, range(1, 7)), (range(1, 7), [5] * 6)):
        with pytest.raises(ConfigError, match="points of one size, or of one number of tokens"):
            fit_scaling_law([*sizes], [*tokens], [1] * 6)


def test_the_sizes_of_the_published_models_are_those_of_their_shapes() -> None:
    for size, parameters in NON_EMBEDDING.items():
        num_layers, hidden_size, *_ = _PYTHIA[f"pythia-{size}"]
        assert parameters == num_layers * (12 * hidden_size**2 + 13 * hidden_size) + 2 * hidden_size


def test_the_largest_published_model_is_foreseen_from_the_smaller_ones(shared_data: Path) -> None:
    table = lambada_losses(shared_data)
    seen = table.where(lambda row: row["series"] != "pythia-12b")
    law = fit_scaling_law(seen.numbers("parameters"), seen.numbers("tokens"), seen.numbers("loss"), num_draws=0).law
    [last] = table.where(series="pythia-12b", step=143000)
    [before] = table.where(series="pythia-6.9b", step=143000)
    observed, foreseen = float(str(last["loss"])), law.loss(NON_EMBEDDING["12b"], float(str(last["tokens"])))
    assert foreseen == pytest.approx(observed, rel=0.05)
    assert abs(foreseen - observed) < abs(float(str(before["loss"])) - observed)  # better than to say: as the next smaller one
