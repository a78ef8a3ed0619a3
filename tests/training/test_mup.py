"""muP: initial spread and rates by width, and the coordinate check with its control, which must fail it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.models.initialize import initial_language_model, standard_deviation
from tripod.training.coordinate_check import check_coordinates, plot_coordinates, slopes
from tripod.training.optimizer import parameter_groups

WIDTHS = (32, 64, 128, 256)


def test_the_base_width_is_the_standard_parametrization(make_recipe: MakeRecipe) -> None:
    config = make_recipe().model.config()
    for name in ("embedding.weight", "head.weight", "blocks.0.mlp.up.weight", "blocks.1.mlp.down.weight"):
        assert standard_deviation(name, config, "small-wang", base_width=32) == standard_deviation(name, config, "small-wang")
    names = dict(initial_language_model(config, 0, "small-wang").named_parameters())
    assert len(parameter_groups(names, 0.1)) == 2


def test_four_times_the_width_is_table_three_of_the_paper(make_recipe: MakeRecipe) -> None:
    config = make_recipe(("hidden_size=128", "num_heads=8")).model.config()

    def ratio(name: str) -> float:
        base = standard_deviation(name, make_recipe().model.config(), "normal-scaled")
        return standard_deviation(name, config, "normal-scaled", base_width=32) / base

    assert ratio("embedding.weight") == 1.0  # input: variance 1
    assert ratio("blocks.0.mlp.up.weight") == ratio("blocks.0.attention.output.weight") == 0.5  # hidden: variance 1 / fan-in
    assert ratio("head.weight") == 0.25  # output: variance 1 / fan-in^2
    groups = parameter_groups(dict(initial_language_model(config, 0, "small-wang").named_parameters()), 0.1, mup_ratio=4.0)
    factors = {name: (group.lr_factor, group.lr_factor * group.weight_decay) for group in groups for name in group.names}
    assert factors["embedding.weight"] == (1.0, 0.1)
    assert factors["head.weight"] == factors["blocks.0.mlp.up.weight"] == (0.25, 0.1)
    assert factors["blocks.0.attention_norm.weight"] == factors["blocks.0.mlp.up.bias"] == (1.0, 0.0)


def test_changes_of_activations_do_not_grow_with_the_width_and_without_mup_they_do(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(("lr=2e-3",))
    control = slopes(check_coordinates(recipe, WIDTHS))
    found = check_coordinates(replace(recipe, model=replace(recipe.model, mup_base_width=32)), WIDTHS)
    by_mup = slopes(found)
    assert set(by_mup) == {"block 0", "block 1", "logits"}
    assert max(by_mup.values()) < 0.2, by_mup
    assert min(control.values()) > 0.3, control
    assert all(math.isfinite(change) for one in found for change in one.changes.values())
    plot_coordinates(found, tmp_path / "coordinates.png")
    assert (tmp_path / "coordinates.png").read_bytes().startswith(b"\x89PNG")


def test_tied_matrices_cannot_have_two_scales(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="mup_base_width: given with is_tied"):
        make_recipe(("is_tied=true", "mup_base_width=16"))
