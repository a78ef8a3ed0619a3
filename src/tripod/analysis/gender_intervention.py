"""The study "gender-intervention": did an intervention change stereotypes? Branches against controls, on the same items.

For each seed, step and task: an exact McNemar test over the items whose answer changed, and a paired bootstrap of the difference. Over
several seeds: Student's t over the seeds' mean differences, because items are the same in all of them and seeds are what varies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.picture import GREY, plain
from tripod.analysis.study import CONCLUDED, PLACE, Measured
from tripod.analysis.task_scores import ScoresTasks, TaskScore
from tripod.errors import ConfigError
from tripod.evaluation.agreement import mcnemar, paired_bootstrap
from tripod.evaluation.table import Row, Table
from tripod.training.compare import student_t

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of each task, the measures of an item that are compared; those that are yes or no are tested by McNemar, too.
_MEASURES: Mapping[str, tuple[str, ...]] = {
    "crows_pairs_english": ("pct_stereotype", "margin", "masculine_margin"),
    "winobias": ("acc", "stereotype"),
    "winobias_generated": ("em",),
    "lambada_openai": ("acc", "logprob"),
}
_UNITS = {"margin": " (nats)", "masculine_margin": " (nats)", "logprob": " (nats)", "pct_stereotype": " (share of pairs)"}
_ALL = "all"
Pair = tuple[str, Checkpoint, Table, Table]  # seed, the branch's checkpoint, its items, the control's


@dataclass(frozen=True)
class GenderIntervention(ScoresTasks):
    """What branches answer otherwise than their controls, with tests and intervals over items and seeds."""

    name: ClassVar[str] = "gender-intervention"
    version: ClassVar[int] = 2
    tasks: tuple[str, ...] = ("crows_pairs_english", "winobias", "lambada_openai")
    group: str = field(default="", metadata=CONCLUDED)  # of the task's items, such as gender of CrowS-Pairs; all
    limit: int | None = None  # questions of each task
    data: str | None = field(default=None, metadata=PLACE)

    def __post_init__(self) -> None:
        if unknown := [task for task in self.tasks if task not in _MEASURES]:
            raise ConfigError(f"the study compares {', '.join(_MEASURES)}; {', '.join(unknown)} has no yes-or-no items that it knows")

    def scores(self) -> list[TaskScore]:
        return [TaskScore(task=task, limit=self.limit, items=True, data=self.data) for task in self.tasks]

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Branches, one of each seed and step, with their controls."""
        _pairs([(checkpoint, Table.of([])) for checkpoint in checkpoints])

    def conclude(self, measured: Measured) -> Table:
        pairs = _pairs(measured)
        groups = {str(row["group"]) for _, table in measured for row in table if row.get("group") is not None}
        if self.group and self.group not in groups:
            raise ConfigError(f"no item is of the group {self.group!r}; there are {', '.join(sorted(groups)) or 'none'}")
        rows: list[Row] = []
        for step in sorted({pair[1].step or 0 for pair in pairs}):
            of_step = [pair for pair in pairs if pair[1].step == step]
            for task in self.tasks:
                for measure in _MEASURES[task]:
                    rows += self._compare(of_step, step, task, measure)
        return Table.of(rows)

    def _compare(self, pairs: Sequence[Pair], step: int, task: str, measure: str) -> list[Row]:
        rows: list[Row] = []
        differences: list[tuple[float, float]] = []
        for seed, _, branch, control in pairs:
            now, before = (self._values(table, task, measure) for table in (branch, control))
            if before.keys() != now.keys():
                raise ConfigError(f"branch and control of seed {seed} were asked other questions of {task}; measure them anew")
            if not before:  # no item of this group has the measure
                return []
            first, second = list(before.values()), [now[item] for item in before]
            interval = paired_bootstrap(first, second)
            is_yes_or_no = set(first) | set(second) <= {0.0, 1.0}
            test = mcnemar([value > 0.5 for value in first], [value > 0.5 for value in second]) if is_yes_or_no else None
            differences.append((float(np.mean(first)), float(np.mean(second))))
            rows.append(
                {
                    "seed": seed,
                    "step": step,
                    "task": task,
                    "measure": measure,
                    "num_items": len(first),
                    "control": differences[-1][0],
                    "branch": differences[-1][1],
                    "difference": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "interval_of": "items",
                    "mcnemar_p": None if test is None else test.p_value,
                    "num_control_only": None if test is None else test.num_first_only,
                    "num_branch_only": None if test is None else test.num_second_only,
                }
            )
        if len(differences) > 1:
            apart = np.array([branch - control for control, branch in differences])
            half = student_t(len(apart) - 1) * float(apart.std(ddof=1)) / len(apart) ** 0.5
            middle = float(apart.mean())
            rows.append(
                {
                    "seed": _ALL,
                    "step": step,
                    "task": task,
                    "measure": measure,
                    "num_items": rows[-1]["num_items"],
                    "control": float(np.mean([one[0] for one in differences])),
                    "branch": float(np.mean([one[1] for one in differences])),
                    "difference": middle,
                    "low": middle - half,
                    "high": middle + half,
                    "interval_of": "seeds",
                }
            )
        return rows

    def _values(self, table: Table, task: str, measure: str) -> dict[str, float]:
        items = table.where(lambda row: row.get("item") is not None, task=task)
        if self.group and any(row["group"] == self.group for row in items):
            items = items.where(group=self.group)
        chosen = items.where(metric=measure)
        return {str(row["item"]): value for row, value in zip(chosen, chosen.numbers("value"), strict=True)}

    def draw(self, table: Table, figure: Figure) -> None:
        last = max(table.numbers("step"))
        shown = table.where(step=int(last))
        panels = list(dict.fromkeys((str(row["task"]), str(row["measure"])) for row in shown))
        seeds = list(dict.fromkeys(str(row["seed"]) for row in shown))
        num_columns = min(3, len(panels))
        num_rows = -(-len(panels) // num_columns)
        figure.set_size_inches(3.6 * num_columns + 0.4, (0.75 + 0.32 * len(seeds)) * num_rows + 0.6)
        grid = figure.subplots(num_rows, num_columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, (task, measure) in zip(grid.flat, panels, strict=False):
            axes.axvline(0, color=GREY, linewidth=1)
            for row in shown.where(task=task, measure=measure):
                at = seeds.index(str(row["seed"]))
                middle, low, high = (float(str(row[name])) for name in ("difference", "low", "high"))
                is_all = row["seed"] == _ALL
                axes.plot([low, high], [at, at], color="C3" if is_all else "C0", linewidth=3 if is_all else 1.6, solid_capstyle="butt")
                axes.plot([middle], [at], "D" if is_all else "o", color="C3" if is_all else "C0", markersize=5)
            axes.set_yticks(range(len(seeds)), ["all seeds" if seed == _ALL else f"seed {seed}" for seed in seeds])
            axes.set_ylim(len(seeds) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=4)
            axes.set_xlabel(f"branch - control{_UNITS.get(measure, '')}, 95 % interval")
            plain(axes, f"{task.removesuffix('_english').replace('_', ' ')}: {measure.replace('_', ' ')}")
        figure.suptitle(f"what the intervention changed, at step {int(last)}", x=0.01, ha="left", fontsize=11)


def _pairs(measured: Measured) -> list[Pair]:
    """Branches with the checkpoints of their controls at the same steps."""
    by_place = {(checkpoint.folder.parent.resolve(), checkpoint.step): table for checkpoint, table in measured}
    pairs: list[Pair] = []
    for checkpoint, table in measured:
        recipe = None if checkpoint.run is None else checkpoint.run.recipe
        if recipe is None or recipe.branch is None or recipe.branch.control is None:
            continue
        control = by_place.get((Path(recipe.branch.control).resolve(), checkpoint.step))
        if control is None:
            raise ConfigError(
                f"{checkpoint.folder} is of a branch whose control {recipe.branch.control} is not given at this step; give both runs"
            )
        seeds = recipe.seeds
        seed = str(seeds.initialization) if seeds.initialization == seeds.order else f"{seeds.initialization}/{seeds.order}"
        pairs.append((seed, checkpoint, table, control))
    if not pairs:
        raise ConfigError("none of the runs is a branch with a control; make some by `tripod train --branch run@stepN FILE`")
    for (seed, step), number in Counter((seed, checkpoint.step) for seed, checkpoint, *_ in pairs).items():
        if number > 1:
            folders = ", ".join(str(checkpoint.folder) for of, checkpoint, *_ in pairs if (of, checkpoint.step) == (seed, step))
            raise ConfigError(
                f"{folders} have one seed, {seed}; an interval over seeds is of one intervention in one size: study them apart"
            )
    return pairs
