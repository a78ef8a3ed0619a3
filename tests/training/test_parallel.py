"""Two processes train what one trains: the same rows, and losses and weights that differ by the rounding of sums."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.conftest import MakeRecipe
from tripod.cli.processes import run_as_processes
from tripod.errors import ConfigError
from tripod.training.checkpoint import read_manifest
from tripod.training.loop import train
from tripod.training.metrics import read_metrics
from tripod.training.parallel import ALONE, joined_processes
from tripod.training.recipe import ParallelRecipe, Recipe
from tripod.training.recipe_file import to_yaml

LOSS_TOLERANCE = 2e-5  # nats: float32 sums in another order, carried through eight steps of Adam
WEIGHT_TOLERANCE = 1e-3  # of the norm; Adam moves a weight by its full rate where its gradient is rounding noise


def train_by_two(recipe: Recipe, *options: str) -> None:
    path = Path(recipe.run).with_suffix(".yaml")
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert run_as_processes(["train", str(path), "--threads", "1", *options], 2) == 0


def losses(run: str) -> list[float]:
    records = list(read_metrics(Path(run) / "metrics.jsonl"))
    return [record[name] for name in ("loss", "valid_loss") for record in records if name in record]


def flat(folder: Path, file: str) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in load_file(folder / file).items()}


def assert_same_state(run: str, other: str, step: int) -> None:
    ours, theirs = (Path(folder) / f"step{step}" for folder in (run, other))
    for question in ("position", "order_fingerprint"):
        assert getattr(read_manifest(ours), question) == getattr(read_manifest(theirs), question)
    for file in ("model.safetensors", "optimizer.safetensors"):
        mine, expected = flat(ours, file), flat(theirs, file)
        assert {name: tensor.shape for name, tensor in mine.items()} == {name: tensor.shape for name, tensor in expected.items()}
        difference = torch.cat([(mine[name] - expected[name]).flatten() for name in mine])
        size = torch.cat([tensor.flatten() for tensor in expected.values()])
        assert difference.norm() / size.norm() < WEIGHT_TOLERANCE, file


@pytest.mark.parametrize(
    "changes",
    [
        ("parallel.style=replicate", "batch.micro_rows=1", "dropout=0.1"),
        ("parallel.style=shard", "model.is_tied=true"),
        ("parallel.tensor=2",),
        ("parallel.tensor=2", "model.architecture=llama"),
    ],
    ids=["replicate", "shard", "tensor", "tensor-llama"],
)
def test_two_processes_train_what_one_trains_and_each_goes_on_from_the_other(make_recipe: MakeRecipe, changes: tuple[str, ...]) -> None:
    recipe = make_recipe((*changes, "num_steps=8", "validation.every=4", "checkpoints.also=[6]"))
    alone = replace(recipe, run=recipe.run + "-alone", parallel=ParallelRecipe())
    train(alone)
    one = replace(recipe, parallel=ParallelRecipe())
    done: list[int] = []
    train(one, on_step=lambda report: done.append(report.step), should_stop=lambda: len(done) == 3)  # three steps by one process,
    train_by_two(recipe, "--resume")  # five by two,
    assert losses(recipe.run) == pytest.approx(losses(alone.run), abs=LOSS_TOLERANCE)
    for step in (6, 8):
        assert_same_state(recipe.run, alone.run, step)
    shutil.rmtree(Path(recipe.run) / "step8")
    train(one, resume=True)  # and the last two by one again, from what the two had written
    assert losses(recipe.run) == pytest.approx(losses(alone.run), abs=LOSS_TOLERANCE)
    assert_same_state(recipe.run, alone.run, 8)


def test_the_parts_of_all_processes_are_the_rows_of_the_step() -> None:
    class Two:
        """The mesh of two processes, as the second of them sees it."""

        def __getitem__(self, name: str) -> Two:
            return self

        def size(self) -> int:
            return 2

        def get_local_rank(self) -> int:
            return 1

    assert ALONE.part(6) == slice(0, 6)
    second = replace(ALONE, mesh=Two())  # type: ignore[arg-type]
    assert second.part(6) == slice(3, 6)
    with pytest.raises(ConfigError, match="5 rows a step cannot be shared by 2 processes equally"):
        second.part(5)


def test_a_layout_that_does_not_fit_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="tensor=2 needs as many processes"), joined_processes(ParallelRecipe(tensor=2), cpu):
        pass
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="tensor=2 does not divide the 3 processes"), joined_processes(ParallelRecipe(tensor=2), cpu):
        pass
