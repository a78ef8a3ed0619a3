"""The arithmetic of a step, by hand."""

from __future__ import annotations

from pathlib import Path

import torch

from tripod.models.initialize import num_parameters
from tripod.training.flops import flops_per_token
from tripod.training.gemm_peak import measure_gemm_peak
from tripod.training.recipe_file import recipe_from
from tripod.training.suite import read_suite

TWINS = Path(__file__).parents[2] / "recipes" / "twins.yaml"


def test_pythia_70m_by_hand() -> None:
    """18 915 328 parameters in blocks and norms, 50304 x 512 in the last matrix; six layers of attention over 2048 tokens of width 512."""
    recipe = recipe_from({"preset": "pythia-70m", "run": "r", "data": {"prefixes": ["p"], "tokenizer": "t"}})
    assert flops_per_token(recipe.model.config(), 2048) == 6 * (18_915_328 + 50_304 * 512) + 12 * 6 * 512 * 2048


def test_a_tied_matrix_is_multiplied_once() -> None:
    recipe = recipe_from({"preset": "pythia-70m", "run": "r", "data": {"prefixes": ["p"], "tokenizer": "t"}, "model": {"is_tied": True}})
    assert flops_per_token(recipe.model.config(), 2048) == 6 * (18_915_328 + 50_304 * 512) + 12 * 6 * 512 * 2048


def test_a_sparse_twin_computes_what_the_dense_one_does_and_its_routers() -> None:
    """recipes/twins.yaml: four routers of 16 experts for a width of 128; of 16 experts of 3 x 128 x 256 in each layer, 14 are not met."""
    dense, sparse = (member.recipe for member in read_suite(TWINS))
    more = 4 * 16 * 128
    flops = [flops_per_token(recipe.model.config(), 128) for recipe in (dense, sparse)]
    assert flops[1] - flops[0] == 6 * more
    assert num_parameters(sparse.model.config()) - num_parameters(dense.model.config()) == more + 4 * 14 * 3 * 128 * 256


def test_the_measured_peak_is_that_of_a_computer() -> None:
    """Between a tenth of and ten thousand times 10^10 operations a second."""
    assert 1e9 < measure_gemm_peak(torch.device("cpu"), torch.float32) < 1e14
