"""Suites: one recipe at several sizes and with several seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.training.loop import train
from tripod.training.recipe_file import read_recipe
from tripod.training.suite import read_suite, standing

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = """
num_steps: 8
run: aside
model: {vocab_size: 259, hidden_size: 32, num_layers: 2, num_heads: 2, max_positions: 64}
data: {prefixes: [x], tokenizer: y}
batch: {rows: 4, seq_length: 16}
optimizer: {lr: 0.01}
"""


def suite_file(folder: Path, section: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(BASE + section, encoding="utf-8")
    return path


def test_every_size_is_trained_with_every_seed(tmp_path: Path) -> None:
    path = suite_file(
        tmp_path,
        """
suite:
  runs: runs/{size}-seed{seed}
  sizes: {narrow: {}, wide: {model: {hidden_size: 64}, optimizer: {lr: 0.005}}}
  seeds: [1, 2]
""",
    )
    members = read_suite(path, ["num_steps=9"])
    assert [(member.name, member.size, member.seed) for member in members] == [
        ("narrow-seed1", "narrow", "1"),
        ("narrow-seed2", "narrow", "2"),
        ("wide-seed1", "wide", "1"),
        ("wide-seed2", "wide", "2"),
    ]
    last = members[-1].recipe
    assert (last.run, last.num_steps, last.model.hidden_size, last.model.num_layers, last.optimizer.lr) == (
        "runs/wide-seed2",
        9,
        64,
        2,
        0.005,
    )
    assert (last.seeds.initialization, last.seeds.order, last.seeds.dropout) == (2, 2, 2)
    assert read_recipe(path).run == "aside"  # `tripod train` leaves the section aside


def test_the_seeds_of_initialization_order_and_dropout_vary_apart(tmp_path: Path) -> None:
    """As PolyPythias' data-seed and weight-seed runs."""
    path = suite_file(tmp_path, "suite: {runs: 'runs/{seed}', seeds: {data-seed1: {order: 1}, weight-seed1: {initialization: 1}}}")
    first, second = (member.recipe.seeds for member in read_suite(path))
    assert (first.initialization, first.order, first.dropout) == (1234, 1, 1234)
    assert (second.initialization, second.order, second.dropout) == (1, 1234, 1234)


def test_the_suite_of_the_repository_has_three_sizes_on_one_order() -> None:
    members = read_suite(RECIPES / "tiny.yaml")
    assert [member.recipe.run for member in members] == ["runs/tiny-s", "runs/tiny-m", "runs/tiny-l"]
    assert len({member.recipe.model.hidden_size for member in members}) == 3
    assert len({(member.recipe.seeds, member.recipe.data, member.recipe.batch, member.recipe.num_steps) for member in members}) == 1
    seeded = read_suite(RECIPES / "tiny.yaml", ["suite.seeds=[1, 2]", "suite.runs=runs/{size}-{seed}", "suite.sizes=[tiny-s]"])
    assert [member.recipe.run for member in seeded] == ["runs/tiny-s-1", "runs/tiny-s-2"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("", "has no section `suite`"),
        ("suite: {runs: r, sizes: [tiny-s, tiny-m]}", "must hold {size}, because there are 2"),
        ("suite: {runs: 'r/{seed}', seeds: [1, 1]}", "several runs of .* have the folder r/1"),
        ("suite: {runs: r, size: 3}", "suite.size: is not a field; known: runs, sizes, seeds"),
        ("suite: {sizes: []}", r"(?s)suite.sizes: \[\]; expected a list.*suite.runs: None; expected the folder"),
        ("suite: {runs: 'r/{size}', sizes: [pythia-3m]}", "'pythia-3m' is not a preset"),
        ("suite: {runs: 'r/{size}', sizes: {a: {model: {hiden_size: 3}}}}", "model.hiden_size: is not a field; did you mean hidden_size"),
    ],
)
def test_what_is_wrong_with_a_suite_is_told(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_suite(suite_file(tmp_path, section))


def test_the_standing_of_a_run_is_read_from_its_folder(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(num_steps=40, validation={"every": 7, "num_batches": 1})
    assert (standing(recipe).step, standing(recipe).is_complete, standing(recipe).loss) == (0, False, None)
    losses: list[float] = []
    train(recipe, on_step=lambda report: losses.append(report.loss), should_stop=lambda: len(losses) == 6)
    now = standing(recipe)
    assert (now.step, now.is_complete) == (6, False)
    assert now.loss == pytest.approx((losses[4] + losses[5]) / 2)  # a twentieth of 40 steps
    assert now.seconds_left is not None
    assert now.tokens_per_s is not None
    assert now.seconds_left * now.tokens_per_s == pytest.approx((40 - 6) * 4 * 16)
    with (Path(recipe.run) / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 7, "lo')  # as another process writes
    assert standing(recipe) == now


def test_the_standing_of_a_long_run_is_read_from_the_end_of_its_metrics(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(num_steps=4000)
    Path(recipe.run).mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": float(step), "seconds": 0.5}) for step in range(1, 3001)]
    (Path(recipe.run) / "metrics.jsonl").write_text("\n".join(lines) + "\n")  # 130 kB: the reader begins within a line
    now = standing(recipe)
    assert (now.step, now.loss, now.seconds_left) == (3000, pytest.approx((2801 + 3000) / 2), 500.0)  # a twentieth are 200 steps
