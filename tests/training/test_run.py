"""A run on disk: who may write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError
from tripod.training import run as run_room
from tripod.training.loop import train
from tripod.training.run import Run, sole_trainer


def test_two_processes_do_not_train_one_run(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_room, "PATIENCE_S", 0.2)
    recipe = make_recipe(num_steps=3)
    folder = Path(recipe.run)
    with sole_trainer(folder), pytest.raises(ConfigError, match=r"another process trains .*wait until it has ended"):
        train(recipe, resume=True)  # a lock belongs to whom opened the folder, so one process can stand for two
    assert not (folder / "metrics.jsonl").exists()
    assert train(recipe, resume=True).is_complete


def test_the_lock_ends_when_a_run_fails(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_room, "PATIENCE_S", 0.2)
    recipe = make_recipe(num_steps=3)

    def fail(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, on_step=fail)
    assert train(recipe, resume=True).is_complete


def test_only_who_trains_takes_away_what_is_being_saved(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(num_steps=3)
    saving = Path(recipe.run) / ".partial-step2-0"
    saving.mkdir(parents=True)
    Run.resume(recipe)  # as `tripod suite run` looks at runs that another process may be training
    assert saving.is_dir()
    train(recipe, resume=True)
    assert not saving.exists()
