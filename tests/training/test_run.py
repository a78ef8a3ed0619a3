"""A run on disk: who may write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import CheckpointError, ConfigError
from tripod.models.load import load_language_model
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
    for file in (".partial-recipe.yaml-0", ".partial-metrics.jsonl-0"):  # of a process that was killed as it wrote them
        (saving.parent / file).touch()
    train(recipe, resume=True)
    assert not list(saving.parent.glob(".partial-*"))


def test_metrics_are_on_the_disk_before_the_checkpoint_that_they_lead_to(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(num_steps=1)
    happened: list[str] = []
    flush, rename = os.fsync, Path.rename

    def note_flush(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        happened.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "rename", note_rename)
    train(recipe)
    named = [name for name in happened if name in ("metrics.jsonl", "step0", "step1")]
    assert list(dict.fromkeys(named[named.index("step0") + 1 :])) == ["metrics.jsonl", "step1"]


def test_a_checkpoint_in_the_place_of_its_run_is_told_from_it(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(num_steps=1)
    train(recipe)
    with pytest.raises(ConfigError, match=r"is a checkpoint of the training run .*give the run alone"):
        Run.open(Path(f"{recipe.run}@step1"))
    with pytest.raises(CheckpointError, match=r"is a training run; name one of its checkpoints, such as .*@step1"):
        load_language_model(Path(recipe.run))
