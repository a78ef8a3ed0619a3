"""The study "seeds": how much runs that differ in their seeds alone agree, as in PolyPythias (van der Wal et al. 2025, arXiv:2503.09543).

Self-consistency is Cohen's kappa of a checkpoint's answers with those of its own last checkpoint; agreement between seeds is kappa with
the answers of the first seed at the same step. A seed is an outlier where its agreement with the others is far below theirs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.checkpoints import Checkpoint, steps_by_size
from tripod.analysis.picture import log_steps, plain, size_colours, spelled_size
from tripod.analysis.study import PLACE, Measured
from tripod.analysis.task_scores import ScoresTasks, TaskScore
from tripod.analysis.training_maps import outliers
from tripod.errors import ConfigError
from tripod.evaluation.agreement import cohen_kappa
from tripod.evaluation.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SELF, BETWEEN, SCORE = "self-consistency", "agreement between seeds", "score"
Answers = Mapping[str, float]  # of one checkpoint on one task, by item


@dataclass(frozen=True)
class Seeds(ScoresTasks):
    """Do seeds learn the same answers, and is one of them off?"""

    name: ClassVar[str] = "seeds"
    version: ClassVar[int] = 1
    tasks: tuple[str, ...] = ("piqa", "sciq", "winogrande")  # with choices or yes-or-no items
    limit: int | None = None
    data: str | None = field(default=None, metadata=PLACE)

    def scores(self) -> list[TaskScore]:
        return [TaskScore(task=task, limit=self.limit, items=True, data=self.data) for task in self.tasks]

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Two runs of each size, with a step in common."""
        for size, runs in steps_by_size(checkpoints).items():
            if len(runs) < 2:
                raise ConfigError(f"of the size {spelled_size(size)} there is one run, {next(iter(runs))}; give runs of several seeds")
            if not set.intersection(*runs.values()):
                raise ConfigError(f"the runs {', '.join(runs)} have no step in common")

    def conclude(self, measured: Measured) -> Table:
        series: dict[tuple[int, str], dict[int, Table]] = {}  # by size and run; then by step
        for checkpoint, table in measured:
            series.setdefault((checkpoint.num_parameters, checkpoint.name), {})[checkpoint.step or 0] = table
        rows: list[Row] = []
        for size in dict.fromkeys(key[0] for key in series):
            runs = {name: steps for (other, name), steps in series.items() if other == size}
            for task in self.tasks:
                rows += _of_task(size, runs, task)
        return Table.of(rows)

    def draw(self, table: Table, figure: Figure) -> None:
        tasks = list(dict.fromkeys(str(row["task"]) for row in table))
        colours = size_colours(table.numbers("size"))
        figure.set_size_inches(3.6 * len(tasks) + 0.6, 5.6)
        grid = figure.subplots(2, len(tasks), squeeze=False, sharey="row")
        for at, task in enumerate(tasks):
            for axes, measure in zip(grid[:, at], (SELF, BETWEEN), strict=True):
                shown = table.where(task=task, measure=measure)
                for (size, _), run in shown.by("size", "run").items():
                    line = run.sorted_by("step")
                    is_outlier = any(row["is_outlier"] for row in run)
                    colour = colours[float(str(size))]
                    style = {"linestyle": "--", "linewidth": 2.0} if is_outlier else {"linewidth": 1.1, "alpha": 0.7}
                    axes.plot(line.numbers("step"), line.numbers("value"), color=colour, **style)
                log_steps(axes, shown.numbers("step"))
                plain(axes, f"{task.replace('_', ' ')}: {measure}")
            grid[0, at].set_ylabel("Cohen's kappa" if at == 0 else "")
            grid[1, at].set_ylabel("Cohen's kappa" if at == 0 else "")
        handles = [grid[0, 0].plot([], [], color=colour, label=spelled_size(size))[0] for size, colour in colours.items()]
        handles.append(grid[0, 0].plot([], [], "k--", label="outlier seed")[0])
        figure.legend(handles=handles, loc="outside right center", title="parameters", frameon=False, fontsize=8, title_fontsize=8)


def _answers(table: Table, task: str) -> Answers:
    """What was chosen, where there is a choice; else whether it was right."""
    items = table.where(lambda row: row.get("item") is not None, task=task)
    for measure in ("choice", "pct_stereotype", "acc"):
        chosen = items.where(metric=measure)
        if len(chosen):
            return {str(row["item"]): value for row, value in zip(chosen, chosen.numbers("value"), strict=True)}
    raise ConfigError(f"the task {task} has no answers that agree or not; take one with choices")


def _of_task(size: int, runs: Mapping[str, Mapping[int, Table]], task: str) -> list[Row]:
    answers = {name: {step: _answers(table, task) for step, table in sorted(steps.items())} for name, steps in runs.items()}
    first = next(iter(answers))
    common = set.intersection(*(set(steps) for steps in answers.values()))
    far = outlier_runs({name: steps[max(common)] for name, steps in answers.items()})
    rows: list[Row] = []
    for name, steps in answers.items():
        last = steps[max(steps)]
        for step, given in steps.items():
            about: Row = {"size": size, "run": name, "step": step, "task": task, "is_outlier": name in far}
            score = next(row["value"] for row in runs[name][step] if row["task"] == task and row.get("item") is None)
            rows.append({**about, "measure": SELF, "value": _kappa(given, last)})
            rows.append({**about, "measure": SCORE, "value": score})
            if name != first and step in answers[first]:
                rows.append({**about, "measure": BETWEEN, "value": _kappa(given, answers[first][step])})
    return rows


def outlier_runs(answers: Mapping[str, Answers]) -> set[str]:
    """Runs whose answers agree with the others' far less than the others' with each other; four runs at least can show one."""
    if len(answers) < 4:
        return set()
    agreement: dict[Hashable, float] = {
        name: float(np.median([_kappa(given, other) for who, other in answers.items() if who != name])) for name, given in answers.items()
    }
    return {str(name) for name in outliers(agreement)}


def _kappa(first: Answers, second: Answers) -> float:
    if first.keys() != second.keys():
        raise ConfigError("two checkpoints were asked other questions; measure them anew")
    return cohen_kappa(list(first.values()), [second[item] for item in first])
