"""Branches of a run: the same weights, optimizer state and order, gone on with an intervention, and a control without one.

A branch begins with a copy of the parent's checkpoint. Its manifest alone is another: it carries the branch's recipe and order, and says
whose it was. Rows below the step are those that the parent read, so the branch's order is a true account of all its checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tripod.durable_files import atomic_file, durable_file, durable_folder
from tripod.errors import ConfigError
from tripod.training.checkpoint import FORMAT, MANIFEST, checkpoint_folder, read_manifest, steps_of_run
from tripod.training.data.interventions import ChangeReport, change_report
from tripod.training.data.order import check_fingerprint
from tripod.training.metrics import FILE_NAME as METRICS
from tripod.training.metrics import read_metrics
from tripod.training.recipe import BranchRecipe, Recipe
from tripod.training.recipe_file import merge_content, read_content, recipe_from, to_mapping
from tripod.training.run import Run, intervened_order, open_recipe_order

REPORT = "interventions.json"
_FIELDS = ("run", "control", "num_steps", "interventions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Two runs that leave a third at one step."""

    parent: Path
    step: int
    branch: Recipe
    control: Recipe


def read_branch(parent: str, path: Path, overrides: Sequence[str] = ()) -> Branch:
    """Read an intervention for a run.

        run: runs/tiny-m-she             # PARENT-NAME, after the file, if it is not said
        control: runs/tiny-m-control     # PARENT-stepN-control, which several branches from there share
        num_steps: 700                   # the parent's
        interventions:
          - {kind: swap, words: {he: she, him: her, his: her}}

    Args:
        parent: run@stepN.
        path: of the YAML file.
        overrides: "a.b=value" of the recipes of both.

    Raises:
        ConfigError: no such checkpoint, or naming all that is wrong with the file; an intervention that begins before the branch.
    """
    folder, at, name = parent.rpartition("@step")
    if not at or not name.isdecimal() or int(name) not in steps_of_run(Path(folder)):
        steps = steps_of_run(Path(folder)) if at else ()
        there = f"; its checkpoints: {', '.join(map(str, steps))}" if steps else ""
        raise ConfigError(f"--branch {parent}: expected RUN@stepN, a checkpoint of a training run{there}")
    step = int(name)
    run = Path(folder)
    content = read_content(path)
    if unknown := [key for key in content if key not in _FIELDS]:
        raise ConfigError(f"{path}: {', '.join(map(str, unknown))} cannot be changed by a branch; known: {', '.join(_FIELDS)}")
    saved = to_mapping(recipe_from(read_manifest(checkpoint_folder(run, step)).recipe, source=f"the recipe of {parent}"))
    declared = content.get("interventions")
    if not isinstance(declared, list) or not declared:
        raise ConfigError(f"{path} declares no interventions; give a list of them")
    interventions = [{"from_step": step, **one} if isinstance(one, dict) else one for one in declared]
    control_folder = str(content.get("control", f"{run}-step{step}-control"))
    common = merge_content(saved, {"num_steps": content.get("num_steps", saved["num_steps"])})
    branch = recipe_from(
        {
            **common,
            "run": str(content.get("run", f"{run}-{path.stem}")),
            "interventions": [*saved["interventions"], *interventions],
            "branch": {"parent": parent, "control": control_folder},
        },
        overrides,
        source=str(path),
    )
    control = replace(
        branch,
        run=control_folder,
        interventions=recipe_from(saved).interventions,
        branch=BranchRecipe(parent=parent),
    )
    if early := [one for one in branch.interventions[len(control.interventions) :] if one.from_step < step]:
        raise ConfigError(
            f"{path}: a {early[0].kind} from step {early[0].from_step} on would change what {parent} was trained on; "
            f"begin at step {step} or later, or branch from an earlier checkpoint"
        )
    if step >= branch.num_steps:
        raise ConfigError(f"{parent} is at the end of num_steps={branch.num_steps}; give a higher num_steps, or an earlier checkpoint")
    return Branch(parent=run, step=step, branch=branch, control=control)


def begin_branch(recipe: Recipe, parent: Path, step: int) -> Run:
    """Make the run of a branch or of its control, at the step of the parent's checkpoint. One that is there goes on.

    Raises:
        ConfigError: there is a run of another recipe in its folder.
    """
    folder = Path(recipe.run)
    if not steps_of_run(folder):
        source = checkpoint_folder(parent, step)
        manifest = read_manifest(source)
        inherited = recipe_from(manifest.recipe).interventions
        # Other numbers of epochs are other orders: then the rows up to here would not be those that the parent read.
        check_fingerprint(manifest.order_fingerprint, open_recipe_order(replace(recipe, interventions=inherited)).fingerprint)
        order = open_recipe_order(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / METRICS) as stream:
            for record in read_metrics(parent / METRICS):
                if record["step"] <= step:
                    stream.write(json.dumps(record).encode() + b"\n")
        changed = replace(
            manifest,
            recipe=to_mapping(recipe),
            order_fingerprint=order.fingerprint,
            branch_of={"checkpoint": f"{parent}@step{step}", "order_fingerprint": manifest.order_fingerprint},
        )
        with durable_folder(checkpoint_folder(folder, step)) as partial:
            for file in source.iterdir():
                if file.name != MANIFEST:
                    with durable_file(partial / file.name) as copied, file.open("rb") as original:
                        shutil.copyfileobj(original, copied, 1 << 24)
            with durable_file(partial / MANIFEST) as stream:
                stream.write(json.dumps({"format": FORMAT, **asdict(changed)}, indent=1).encode() + b"\n")
    return Run.resume(recipe)


def report_changes(run: Run, *, num_inherited: int = 0) -> tuple[ChangeReport, ...]:
    """What each intervention of a run changes, but for the first, inherited ones; kept in `interventions.json`."""
    _, layers = intervened_order(run.recipe)
    reports = tuple(change_report(layer) for layer in layers[num_inherited:])
    with atomic_file(run.folder / REPORT) as stream:
        stream.write(json.dumps([_plain(report) for report in reports], indent=1, ensure_ascii=False).encode() + b"\n")
    return reports


def _plain(report: ChangeReport) -> dict[str, Any]:
    return {**asdict(report), "share_of_rows": report.share_of_rows, "share_of_tokens": report.share_of_tokens}
