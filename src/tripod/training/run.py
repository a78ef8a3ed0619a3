"""A training run on disk: `recipe.yaml`, `metrics.jsonl` and a folder `stepN` for each checkpoint."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tripod.durable import atomic_file
from tripod.errors import ConfigError
from tripod.text.load_tokenizer import load_tokenizer
from tripod.training.checkpoint import Manifest, checkpoint_folder, read_manifest, remove_partial, steps_of_run
from tripod.training.data.interventions import ChangedRows
from tripod.training.data.open_order import open_order
from tripod.training.data.order import DataOrder
from tripod.training.data.progress import Progress, no_progress
from tripod.training.data.rows import PreshuffledRows
from tripod.training.data.ul2 import ul2_rows
from tripod.training.intervention import intervene
from tripod.training.metrics import FILE_NAME as METRICS
from tripod.training.recipe import Recipe
from tripod.training.recipe_file import read_recipe, recipe_from, to_mapping, to_yaml

RECIPE = "recipe.yaml"
PATIENCE_S = 10.0  # for another process that trains the run to save and end, as those of a killed `tripod suite run` do
_POLL_S = 0.1
_MAY_CHANGE = (
    *("run", "validation", "checkpoints", "batch.micro_rows", "parallel", "recompute", "routing_rows"),
    *("data.prefixes", "data.tokenizer", "data.maps_folder", "data.source"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Paths in its recipe are relative to the working folder, as they were when it began."""

    folder: Path
    recipe: Recipe

    @staticmethod
    def open(folder: Path) -> Run:
        """A run that was begun.

        Raises:
            ConfigError: there is no run in this folder, or its recipe cannot be read.
        """
        run, at, step = str(folder).rpartition("@step")
        if at and (Path(run) / RECIPE).is_file():
            raise ConfigError(f"{folder} is a checkpoint of the training run {run}; give the run alone (and step {step} by itself)")
        if not (folder / RECIPE).is_file():
            raise ConfigError(f"{folder} is not a training run: it has no {RECIPE}; give the folder that a recipe names in `run`")
        return Run(folder, read_recipe(folder / RECIPE))

    @staticmethod
    def begin(recipe: Recipe) -> Run:
        """A new run in the folder that the recipe names.

        Raises:
            ConfigError: the folder holds checkpoints.
        """
        folder = Path(recipe.run)
        if steps := steps_of_run(folder):
            raise ConfigError(f"{folder} has checkpoints up to step {steps[-1]}; resume it (--resume), or name another folder in `run`")
        return Run._claim(folder, recipe)

    @staticmethod
    def resume(recipe: Recipe) -> Run:
        """The run of this recipe, at whatever step it is; a new one if there is none.

        What does not touch weights may have changed: where things lie, when to save and to validate, the size of a micro-batch
        and the layout over processes (by which sums are rounded otherwise). The order of the data is checked by its fingerprint.

        Raises:
            ConfigError: its newest checkpoint was made by a recipe that differs in anything else.
        """
        folder = Path(recipe.run)
        if steps := steps_of_run(folder):
            # Read and written again, so that fields which are younger than the run have their defaults.
            saved = to_mapping(recipe_from(read_manifest(checkpoint_folder(folder, steps[-1])).recipe, source=f"the recipe of {folder}"))
            if differences := [
                f"{path}: {before!r} before, {now!r} now"
                for path, before, now in _differences(saved, to_mapping(recipe))
                if not path.startswith(_MAY_CHANGE)
            ]:
                raise ConfigError(
                    f"{folder} was trained by another recipe up to step {steps[-1]}; take it back, or name another folder in `run`:\n  "
                    + "\n  ".join(differences)
                )
        return Run._claim(folder, recipe)

    @staticmethod
    def _claim(folder: Path, recipe: Recipe) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / RECIPE) as stream:
            stream.write(to_yaml(recipe).encode())
        return Run(folder, recipe)

    @property
    def metrics_path(self) -> Path:
        return self.folder / METRICS

    @property
    def steps(self) -> tuple[int, ...]:
        """Of its checkpoints, in order."""
        return steps_of_run(self.folder)

    def checkpoint(self, step: int) -> Path:
        return checkpoint_folder(self.folder, step)

    def manifest(self, step: int) -> Manifest:
        return read_manifest(self.checkpoint(step))

    def order(self, part: Literal["train", "valid"] = "train", *, progress: Progress = no_progress) -> DataOrder:
        """Which rows it trains at which step."""
        return open_recipe_order(self.recipe, part, progress=progress)


@contextmanager
def sole_trainer(folder: Path) -> Iterator[None]:
    """Within the block no other process trains the run in this folder; what a crash left half written is taken away first.

    Two trainers would write one metrics file, and take away what the other is just saving.

    Raises:
        ConfigError: another process trains it, and did not end within `PATIENCE_S`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # closed, and the lock with it, when the process ends in whatever way
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not _is_locked(descriptor):
            if time.monotonic() > deadline_s:
                raise ConfigError(f"another process trains {folder}; wait until it has ended, or name another folder in `run`")
            time.sleep(_POLL_S)
        remove_partial(folder)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether this process has the lock now. Where a file system has none, such as some of networks, everyone has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def open_recipe_order(recipe: Recipe, part: Literal["train", "valid"] = "train", *, progress: Progress = no_progress) -> DataOrder:
    """The order of a recipe's data; see `open_order`. The validation part has as many steps as one validation has batches.

    Raises:
        ConfigError: the recipe asks for no validation, or for more steps than there are rows.
        DatasetError: a data set cannot be opened.
    """
    data, batch = recipe.data, recipe.batch
    is_valid = part == "valid"
    if is_valid and recipe.validation is None:
        raise ConfigError("the recipe asks for no validation, so there is no order of its rows; give it `validation`")
    num_steps = recipe.validation.num_batches if is_valid and recipe.validation is not None else recipe.num_steps
    if recipe.ul2 is not None and not is_valid:
        rows = open_recipe_order(replace(recipe, ul2=None), progress=progress).rows
        num_rows = (recipe.num_steps if recipe.ul2.to_step is None else recipe.ul2.to_step) * batch.rows
        tokenizer, vocab_size = load_tokenizer(Path(data.tokenizer)), recipe.model.vocab_size
        mixed = ul2_rows(rows, recipe.ul2, num_rows=num_rows, seed=recipe.seeds.order, tokenizer=tokenizer, vocab_size=vocab_size)
        return DataOrder(mixed, batch.rows)
    if recipe.interventions and not is_valid:
        return intervened_order(recipe, progress=progress)[0]
    if data.is_preshuffled and not is_valid:
        rows = PreshuffledRows.open(Path(data.prefixes[0]))
        order = DataOrder(rows, batch.rows)
        if rows.seq_length != batch.seq_length or order.num_steps < num_steps:
            raise ConfigError(
                f"{data.prefixes[0]} has {rows.num_rows} rows of {rows.seq_length} targets; the recipe needs {num_steps * batch.rows} of "
                f"{batch.seq_length}"
            )
        return order
    has_own_files = is_valid and data.split is None
    return open_order(
        [Path(prefix) for prefix in (data.valid_prefixes if has_own_files else data.prefixes)],
        seq_length=batch.seq_length,
        batch_size=batch.rows,
        num_steps=num_steps,
        seed=recipe.seeds.order,
        part=part,
        weights=None if has_own_files else data.weights,
        split=data.split,
        maps_folder=None if data.maps_folder is None else Path(data.maps_folder),
        progress=progress,
    )


def intervened_order(recipe: Recipe, *, progress: Progress = no_progress) -> tuple[DataOrder, tuple[ChangedRows, ...]]:
    """The order of a recipe's rows with its interventions, and those as layers, each over the ones before it; UL2 comes after them.

    Raises:
        ConfigError, DatasetError: see `open_recipe_order` and `intervene`.
    """
    order = open_recipe_order(replace(recipe, interventions=(), ul2=None), progress=progress)
    rows, layers = intervene(
        order.rows,
        recipe.interventions,
        batch_size=recipe.batch.rows,
        num_steps=recipe.num_steps,
        tokenizer=Path(recipe.data.tokenizer),
    )
    return DataOrder(rows, order.batch_size), layers


def _differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys((*before, *now))
        found = (_differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key)) for key in keys)
        return [difference for differences in found for difference in differences]
    return [] if before == now else [(path, before, now)]
