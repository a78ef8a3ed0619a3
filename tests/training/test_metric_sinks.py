"""Metrics beside the log: TensorBoard's own reader must find in its files what the log says, once a step."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError, MissingExtraError
from tripod.training.loop import StepReport, train
from tripod.training.metric_sinks import TensorBoardSink, WandbSink, sink_named
from tripod.training.metrics import read_metrics
from tripod.training.recipe import Recipe
from tripod.training.run import Run


def logged(recipe: Recipe, name: str) -> list[tuple[int, float]]:
    return [(record["step"], record[name]) for record in read_metrics(Path(recipe.run) / "metrics.jsonl") if name in record]


def in_tensorboard(recipe: Recipe, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(Path(recipe.run) / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def assert_same(recipe: Recipe) -> None:
    for name in ("loss", "lr", "grad_norm", "num_tokens", "valid_loss"):
        expected = logged(recipe, name)
        assert [step for step, _ in in_tensorboard(recipe, name)] == [step for step, _ in expected]
        assert [value for _, value in in_tensorboard(recipe, name)] == pytest.approx([value for _, value in expected], rel=1e-6)


class Crash(Exception):
    """As a process that is killed between two checkpoints."""


def crash_after(step: int) -> Any:
    def watch(report: StepReport) -> None:
        if report.step == step:
            raise Crash

    return watch


def test_tensorboard_finds_every_step_once_after_a_crash_behind_the_last_checkpoint(make_recipe: MakeRecipe) -> None:
    pytest.importorskip("tensorboard")
    recipe = make_recipe(("validation.every=4", "checkpoints.every=5"))
    with pytest.raises(Crash):
        train(recipe, sinks=[TensorBoardSink], on_step=crash_after(9))
    assert [step for step, _ in in_tensorboard(recipe, "loss")] == list(range(1, 10))
    assert Run.open(Path(recipe.run)).steps[-1] == 5
    train(recipe, resume=True, sinks=[TensorBoardSink])
    assert [step for step, _ in in_tensorboard(recipe, "loss")] == list(range(1, 13))
    assert_same(recipe)


def test_a_run_that_gets_a_sink_late_is_shown_from_its_beginning(make_recipe: MakeRecipe) -> None:
    pytest.importorskip("tensorboard")
    recipe = make_recipe(("validation.every=4", "checkpoints.every=5"))
    with pytest.raises(Crash):
        train(recipe, on_step=crash_after(7))
    train(recipe, resume=True, sinks=[TensorBoardSink])
    assert_same(recipe)


def test_wandb_is_one_run_with_the_recipe_and_a_record_a_step(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its interface: a script stands in its place."""
    told: list[Any] = []

    def init(**options: Any) -> SimpleNamespace:
        told.append(("init", options["id"], options["resume"], options["config"]["num_steps"]))
        return SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("finish"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    recipe = make_recipe(("num_steps=3", "checkpoints.log_until=2"))
    with pytest.raises(Crash):
        train(recipe, sinks=[WandbSink], on_step=crash_after(2))
    train(recipe, resume=True, sinks=[WandbSink])
    (first, second) = [entry for entry in told if entry[0] == "init"]
    assert first[1] == second[1]
    assert (first[2:], second[2:]) == ((None, 3), ("allow", 3))
    assert told.count("finish") == 2
    steps = [(entry[0], entry[1]["loss"]) for entry in told if isinstance(entry[0], int)]
    assert steps[:2] == logged(recipe, "loss")[:2]
    assert steps[2:] == logged(recipe, "loss")[1:]  # step 1 is the newest checkpoint: step 2 is told again, which wandb leaves out


def test_a_wandb_run_is_written_offline(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'tripod[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = make_recipe(("num_steps=3",))
    train(recipe, sinks=[WandbSink])
    (written,) = Path(recipe.run).glob("wandb/offline-run-*/run-*.wandb")
    assert b"grad_norm" in written.read_bytes()


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_sink_without_its_package_names_the_extra(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == package or module.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"tripod\[{name}\]"):
        train(make_recipe(("num_steps=1",)), sinks=[sink_named(name)])


def test_a_sink_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"'csv' is not a place for metrics; expected one of tensorboard, wandb"):
        sink_named("csv")
