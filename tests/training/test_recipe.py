"""What a recipe accepts, and how it says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.models.initialize import num_parameters
from tripod.training.presets import PRESETS
from tripod.training.recipe_file import read_content, read_recipe, recipe_from, to_mapping, to_yaml

DATA = {"run": "runs/x", "data": {"prefixes": ["pile"], "tokenizer": "tokenizer"}}

# Biderman et al. 2023 and the published models: name -> parameters without embeddings, with
PYTHIA = {
    "pythia-14m": (1_189_888, 14_067_712),
    "pythia-31m": (4_739_072, 30_494_720),
    "pythia-70m": (18_915_328, 70_426_624),
    "pythia-160m": (85_056_000, 162_322_944),
    "pythia-410m": (302_311_424, 405_334_016),
    "pythia-1b": (805_736_448, 1_011_781_632),
    "pythia-1.4b": (1_208_602_624, 1_414_647_808),
    "pythia-2.8b": (2_517_652_480, 2_775_208_960),
    "pythia-6.9b": (6_444_163_072, 6_857_302_016),
    "pythia-12b": (11_327_027_200, 11_846_072_320),
}


@pytest.mark.parametrize(("name", "expected"), PYTHIA.items())
def test_a_pythia_has_its_parameters_to_the_unit(name: str, expected: tuple[int, int]) -> None:
    model = recipe_from({**DATA, "preset": name}).model
    d, num_layers = model.hidden_size, model.num_layers
    total = num_parameters(model.config())
    assert (total - 2 * model.vocab_size * d, total) == expected
    assert expected[0] == num_layers * (12 * d * d + 13 * d) + 2 * d


def test_every_size_of_the_suite_is_tested() -> None:
    assert {name for name in PRESETS if name.startswith("pythia")} == set(PYTHIA)


@pytest.mark.parametrize(
    ("name", "lr", "micro_rows", "precision"),
    [("pythia-70m", 1e-3, 32, "fp16"), ("pythia-1b", 2.5e-4, 16, "bf16"), ("pythia-12b", 1.2e-4, 8, "fp16")],
)
def test_a_pythia_is_trained_as_it_was(name: str, lr: float, micro_rows: int, precision: str) -> None:
    recipe = recipe_from({**DATA, "preset": name})
    schedule = recipe.learning_rates()
    assert (schedule.peak_lr, schedule.min_lr, schedule.num_warmup) == (lr, pytest.approx(lr / 10), 1430)
    assert recipe.num_steps * recipe.batch.rows * recipe.batch.seq_length == 299_892_736_000
    assert (recipe.batch.micro_rows, recipe.precision) == (micro_rows, precision)
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.eps, recipe.optimizer.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert len(recipe.checkpoints.steps(recipe.num_steps)) == 154
    assert recipe.model.rotary_dim == {"pythia-70m": 16, "pythia-1b": 64, "pythia-12b": 32}[name]


def test_only_the_two_largest_begin_with_plain_normal_weights() -> None:
    plain = {name for name in PYTHIA if recipe_from({**DATA, "preset": name}).model.initialization == "normal-scaled"}
    assert plain == {"pythia-6.9b", "pythia-12b"}


def test_all_errors_come_at_once_each_with_its_path(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(
            model={"hidden_size": 30, "num_heads": 4, "num_layer": 2},
            batch={"rows": "four", "seq_length": 128},
            optimizer={"lr": -1},
            schedule={"warmup": 2.0},
            precision="fp8",
        )
    lines = [line.strip().partition(": ") for line in str(caught.value).splitlines()]
    assert lines[0][0].startswith("6 things to change")
    assert {path for path, _, _ in lines[1:]} == {
        "model.num_layer",  # unknown
        "model.num_heads",  # does not divide
        "batch.rows",
        "optimizer.lr",
        "schedule.warmup",
        "precision",
    }
    assert "did you mean num_layers" in str(caught.value)


def test_what_does_not_fit_together_is_told_with_both_numbers(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(batch={"seq_length": 65, "micro_rows": 9}, validation={"every": 0}, data={"valid_prefixes": []})
    assert "batch.seq_length: 65 is beyond model.max_positions=64" in str(caught.value)
    assert "batch.micro_rows: 9; must be from 1 to rows=4" in str(caught.value)
    assert "validation.every: 0" in str(caught.value)
    assert "validation: asked for without data" in str(caught.value)


def test_a_recipe_in_python_is_checked_too(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="num_steps: 0; must be at least 1"):
        replace(make_recipe(), num_steps=0)


def test_what_is_required_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_from({"run": "x"})
    missing = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert missing == {"num_steps", "model", "data", "batch", "optimizer"}


def test_changes_go_before_the_file_with_types(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("optimizer.lr=3e-4", "num_steps=7", "checkpoints.also=[3, 5]", "batch.micro_rows=null", "validation.every=2"))
    assert (recipe.optimizer.lr, recipe.num_steps, recipe.checkpoints.also) == (3e-4, 7, (3, 5))
    assert recipe.batch.micro_rows is None
    assert recipe.validation is not None
    assert recipe.validation.every == 2


def test_a_change_may_leave_out_the_path_where_the_name_is_clear(make_recipe: MakeRecipe) -> None:
    assert make_recipe(("lr=5e-3",)).optimizer.lr == 5e-3
    with pytest.raises(ConfigError, match=r"every: stands for several: checkpoints.every, validation.every"):
        make_recipe(("every=3",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.learning_rate=1", r"optimizer.learning_rate: is not a field; known: lr, "),
        ("optimizer.lr=fast", r"optimizer.lr: 'fast'; expected a number"),
        ("num_steps=1.5", r"num_steps: 1.5; expected a whole number"),
        ("data.prefixes=[a, 3]", r"data.prefixes\[1\]: 3; expected a text"),
        ("num_steps=true", r"num_steps: True; expected a whole number"),
        ("num_steps", r"a change is written as path=value"),
        ("num_steps.x=1", r"num_steps is a value and has nothing inside"),
        ("model.preset=huge", r"model.preset: 'huge' is not a preset; presets: pythia-14m"),
    ],
)
def test_a_wrong_change_is_told(make_recipe: MakeRecipe, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_recipe((change,))


def test_the_file_goes_before_its_preset() -> None:
    recipe = recipe_from({**DATA, "preset": "pythia-70m", "model": {"hidden_act": "gelu"}, "num_steps": 10})
    assert (recipe.model.hidden_act, recipe.model.hidden_size, recipe.num_steps) == ("gelu", 512, 10)


def test_a_model_preset_gives_the_model_alone(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(("model.preset=pythia-14m", "model.hidden_size=64"))
    assert (recipe.model.num_layers, recipe.model.hidden_size, recipe.num_steps) == (2, 64, 12)  # the recipe's own layers


def test_yaml_comes_back_as_the_same_recipe(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(("optimizer.lr=1e-5", "validation.every=3", "checkpoints.also=[7]"))
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe_from(to_mapping(recipe)) == recipe


def test_a_file_that_is_absent_or_not_yaml_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_recipe(tmp_path / "broken.yaml")


def test_a_python_file_is_a_recipe_whether_it_holds_one_or_its_fields(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(("num_steps=7",))
    path = tmp_path / "recipe.py"
    path.write_text(f"from tripod.training.recipe_file import recipe_from\nrecipe = recipe_from({to_mapping(recipe)!r})", encoding="utf-8")
    assert read_recipe(path) == recipe
    path.write_text(f"recipe = {to_mapping(recipe)!r} | dict(num_steps=3 + 4)\nsuite = {{'seeds': [0, 1]}}", encoding="utf-8")
    assert read_recipe(path) == recipe
    assert read_content(path)["suite"] == {"seeds": [0, 1]}
    assert read_recipe(path, ("num_steps=9",)).num_steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number = 1\nrecipe = 1 / 0", "fails in line 2: ZeroDivisionError"),
        ("recipe = (", "fails: SyntaxError"),
        ("recipe = 3", r"calls int `recipe`; expected recipe = Recipe\(...\)"),
        ("recipes = 3", "calls nothing `recipe`"),
    ],
)
def test_a_python_file_without_a_recipe_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "recipe.py")
