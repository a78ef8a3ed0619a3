"""The study "learning-curves": tasks over training, by size, step and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.picture import GREY, log_steps, plain, size_colours, spelled_size
from tripod.analysis.study import PLACE, Measured
from tripod.analysis.task_scores import ScoresTasks, TaskScore
from tripod.evaluation.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3  # of panels
_LOWER_IS_BETTER = ("perplexity", "bits_per_byte")
CHANCE: Mapping[str, float] = {
    "piqa": 1 / 2, "winogrande": 1 / 2, "copa": 1 / 2, "boolq": 1 / 2, "wsc": 1 / 2, "crows_pairs_english": 1 / 2,
    "arc_easy": 1 / 4, "arc_challenge": 1 / 4, "sciq": 1 / 4, "logiqa": 1 / 4, "openbookqa": 1 / 4,
}  # fmt: skip


@dataclass(frozen=True)
class LearningCurves(ScoresTasks):
    """When do models of different sizes learn what?"""

    name: ClassVar[str] = "learning-curves"
    version: ClassVar[int] = 1
    tasks: tuple[str, ...] = ("lambada_openai", "piqa", "arc_easy", "sciq", "winogrande", "arc_challenge")
    limit: int | None = None  # questions of each task
    shots: int | None = None  # examples before each question; none, of lm-eval what the task says
    data: str | None = field(default=None, metadata=PLACE)

    def scores(self) -> list[TaskScore]:
        return [TaskScore(task=task, limit=self.limit, shots=self.shots, data=self.data) for task in self.tasks]

    def conclude(self, measured: Measured) -> Table:
        return Table.of({**checkpoint.about(), **row} for checkpoint, table in measured for row in table)

    def draw(self, table: Table, figure: Figure) -> None:
        draw_curves(table, figure)


def draw_curves(table: Table, figure: Figure, *, panels: list[tuple[str, str]] | None = None) -> None:
    """A panel a task and metric: steps along, sizes as colours; where a size has several seeds, their median and quartiles.

    Args:
        table: columns model, size (parameters), step, task, metric, value, and stderr.
        figure: empty.
        panels: (task, metric) in order; all of whole tasks.
    """
    found = dict.fromkeys((str(row["task"]), str(row["metric"])) for row in table if "/" not in str(row["task"]))
    chosen = panels or list(found)
    num_rows = -(-len(chosen) // _COLUMNS)
    num_columns = min(_COLUMNS, len(chosen))
    figure.set_size_inches(3.9 * num_columns + 0.6, 2.9 * num_rows + 0.5)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    colours = size_colours(table.numbers("size"))
    for at, axes in enumerate(grid.flat):
        if at >= len(chosen):
            axes.set_visible(False)
            continue
        task, metric = chosen[at]
        _panel(axes, table.where(task=task, metric=metric), task, metric, colours)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="parameters", frameon=False, fontsize=8, title_fontsize=8)


def _panel(axes: Axes, table: Table, task: str, metric: str, colours: Mapping[float, tuple[float, float, float, float]]) -> None:
    for (size,), of_size in sorted(table.by("size").items(), key=lambda item: float(str(item[0][0]))):
        colour = colours[float(str(size))]
        by_step = {int(str(step)): group for (step,), group in of_size.sorted_by("step").by("step").items()}
        steps = list(by_step)
        values = [group.numbers("value") for group in by_step.values()]
        axes.plot(
            steps, [float(np.median(of_seeds)) for of_seeds in values], color=colour, linewidth=1.6, label=spelled_size(float(str(size)))
        )
        if max(map(len, values)) > 2:
            low, high = (np.array([np.quantile(of_seeds, share) for of_seeds in values]) for share in (0.25, 0.75))
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        elif all(len(of_seeds) == 1 for of_seeds in values):
            errors = [group.column("stderr")[0] for group in by_step.values()]
            if all(isinstance(error, float) for error in errors):
                middle, half = np.array(values)[:, 0], np.array(errors, float)
                axes.fill_between(steps, middle - half, middle + half, color=colour, alpha=0.15, linewidth=0)
    if metric == "acc" and task in CHANCE:
        axes.axhline(CHANCE[task], color=GREY, linestyle=":", linewidth=1)
    if any(name in metric or metric == "ppl" for name in _LOWER_IS_BETTER) and table.numbers("value"):
        axes.set_yscale("log")
    log_steps(axes, table.numbers("step"))
    axes.set_ylabel({"acc": "accuracy", "acc_norm": "accuracy a character", "ppl": "perplexity"}.get(metric, metric.replace("_", " ")))
    plain(axes, task.removesuffix("_openai").replace("_", " "))
