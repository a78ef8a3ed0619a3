"""A suite: one recipe trained at several sizes and with several seeds, a run each.

A suite is a recipe with one section more, which `tripod train` leaves aside:

    suite:
      runs: runs/{size}-seed{seed}           # the folder of a run; {size} and {seed} stand for their names
      sizes: [tiny-s, tiny-m]                # presets, or NAME: {what of the recipe differs}
      seeds: [1, 2]                          # numbers for all three seeds, or NAME: {initialization: 1, order: 2, dropout: 3}

PolyPythias (arXiv:2503.09543) calls data-seed1 what is `data-seed1: {order: 1}` here, and weight-seed1 `{initialization: 1}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripod.errors import ConfigError
from tripod.training.checkpoint import steps_of_run
from tripod.training.metrics import FILE_NAME as METRICS
from tripod.training.model_recipe import Problem
from tripod.training.recipe import Recipe, raise_problems
from tripod.training.recipe_file import merge_content, parse_yaml, read_content, recipe_from

_FIELDS = ("runs", "sizes", "seeds")
_TAIL_BYTES = 1 << 16  # of a metrics file: some hundred steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a suite."""

    name: str  # its folder's
    size: str | None
    seed: str | None
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run is, read from its folder; another process may be training it."""

    step: int  # the last that its metrics know; after a crash that may be one that is trained again
    is_complete: bool
    loss: float | None = None  # mean over the last steps, as many as the smallest twentieth of the run
    valid_loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None


def read_suite(path: Path, overrides: Sequence[str] = ()) -> tuple[Member, ...]:
    """Read the members of a suite, sizes outermost.

    Args:
        path: of the YAML file.
        overrides: "a.b=value", for every member; "suite.seeds=[1, 2]" changes the suite itself.

    Raises:
        ConfigError: naming all that is wrong, or two members that would have the same folder.
        MissingExtraError: PyYAML is not installed.
    """
    content = read_content(path)
    section = content.pop("suite", None)
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no section `suite`, so it is one recipe: run it by `tripod train {path}`, or say what varies")
    section = dict(section)
    for override in [override for override in overrides if override.startswith("suite.")]:
        name, _, text = override.removeprefix("suite.").partition("=")
        section[name] = parse_yaml(text, override)
    recipe_changes = [override for override in overrides if not override.startswith("suite.")]
    problems: list[Problem] = [(f"suite.{name}", f"is not a field; known: {', '.join(_FIELDS)}") for name in section if name not in _FIELDS]
    sizes = _variants(section.get("sizes"), "suite.sizes", lambda name: {"preset": name}, problems)
    seeds = _variants(section.get("seeds"), "suite.seeds", _one_seed, problems)
    runs = section.get("runs")
    if not isinstance(runs, str) or not runs:
        problems.append(("suite.runs", f"{runs!r}; expected the folder of a run, such as runs/{{size}}-seed{{seed}}"))
        runs = "-"
    for name, variants in (("size", sizes), ("seed", seeds)):
        if len(variants) > 1 and f"{{{name}}}" not in runs:
            problems.append(("suite.runs", f"{runs!r}; must hold {{{name}}}, because there are {len(variants)} of them"))
    raise_problems(problems, str(path))
    members = []
    for size, size_content in sizes:
        for seed, seed_content in seeds:
            folder = runs.replace("{size}", size or "").replace("{seed}", seed or "")
            own = merge_content(merge_content(content, size_content), seed_content) | {"run": folder}
            recipe = recipe_from(own, recipe_changes, source=f"{path}, for {folder}")
            members.append(Member(name=Path(recipe.run).name, size=size, seed=seed, recipe=recipe))
    folders = [member.recipe.run for member in members]
    if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
        raise ConfigError(f"several runs of {path} have the folder {', '.join(twice)}; tell them apart in suite.runs")
    return tuple(members)


def standing(recipe: Recipe) -> Standing:
    """How far the run of a recipe is."""
    folder = Path(recipe.run)
    records = _last_records(folder / METRICS)
    steps = steps_of_run(folder)
    is_complete = bool(steps) and steps[-1] >= recipe.num_steps
    trained = [record for record in records if "loss" in record][-max(1, recipe.num_steps // 20) :]
    valid = [record["valid_loss"] for record in records if "valid_loss" in record]
    if not trained:
        return Standing(step=steps[-1] if steps else 0, is_complete=is_complete, valid_loss=valid[-1] if valid else None)
    seconds = sum(record["seconds"] for record in trained) / len(trained)
    step = int(trained[-1]["step"])
    return Standing(
        step=step,
        is_complete=is_complete,
        loss=sum(record["loss"] for record in trained) / len(trained),
        valid_loss=valid[-1] if valid else None,
        tokens_per_s=recipe.batch.rows * recipe.batch.seq_length / seconds,
        seconds_left=0.0 if is_complete else (recipe.num_steps - step) * seconds,
    )


def _variants(given: object, path: str, meaning: Any, problems: list[Problem]) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Names with what of a recipe they change; one without a name where nothing is given."""
    if given is None:
        return [(None, {})]
    if isinstance(given, list) and given:
        return [(str(name), meaning(name)) for name in given]
    if isinstance(given, dict) and given:
        for name, changes in given.items():
            if not isinstance(changes, dict):
                problems.append((f"{path}.{name}", f"{changes!r}; expected keys and values"))
        is_seeds = path.endswith("seeds")
        return [
            (str(name), {"seeds": changes} if is_seeds else changes) for name, changes in given.items() if isinstance(changes, dict)
        ] or [(None, {})]
    problems.append((path, f"{given!r}; expected a list of names, or names with what they change"))
    return [(None, {})]


def _one_seed(seed: object) -> Mapping[str, Any]:
    return {"seeds": {"initialization": seed, "order": seed, "dropout": seed}}


def _last_records(path: Path) -> list[dict[str, Any]]:
    """The records at the end of a metrics file, which may be written at this moment."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            tail = stream.read()
    except FileNotFoundError:
        return []
    lines = tail.split(b"\n")[:-1]  # behind the last line feed stands what is not whole yet
    return [json.loads(line) for line in (lines if size <= _TAIL_BYTES else lines[1:])]
