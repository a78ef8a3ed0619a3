"""The arithmetic of a step, by hand."""

from __future__ import annotations

import torch

from tripod.training.flops import flops_per_token
from tripod.training.gemm_peak import measure_gemm_peak
from tripod.training.recipe_file import recipe_from


def test_pythia_70m_by_hand() -> None:
    """18 915 328 parameters in blocks and norms, 50304 x 512 in the last matrix; six layers of attention over 2048 tokens of width 512."""
    recipe = recipe_from({"preset": "pythia-70m", "run": "r", "data": {"prefixes": ["p"], "tokenizer": "t"}})
    assert flops_per_token(recipe.model.config(), 2048) == 6 * (18_915_328 + 50_304 * 512) + 12 * 6 * 512 * 2048


def test_a_tied_matrix_is_multiplied_once() -> None:
    recipe = recipe_from({"preset": "pythia-70m", "run": "r", "data": {"prefixes": ["p"], "tokenizer": "t"}, "model": {"is_tied": True}})
    assert flops_per_token(recipe.model.config(), 2048) == 6 * (18_915_328 + 50_304 * 512) + 12 * 6 * 512 * 2048


def test_the_measured_peak_is_that_of_a_computer() -> None:
    """Between a tenth of and ten thousand times 10^10 operations a second."""
    assert 1e9 < measure_gemm_peak(torch.device("cpu"), torch.float32) < 1e14
