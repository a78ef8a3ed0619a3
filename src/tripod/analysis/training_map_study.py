"""The study "training-maps": the states that runs of several seeds pass through, from statistics of their weights."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.checkpoints import Checkpoint, steps_by_size
from tripod.analysis.picture import plain, spelled_size
from tripod.analysis.study import CONCLUDED, Measured
from tripod.analysis.training_maps import best_training_map, outliers, seeds_apart, zscored
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.models.checkpoint import read_tensors
from tripod.training.data.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = "viridis"


@dataclass(frozen=True)
class TrainingMaps:
    """Do all seeds take the same way through training, and which does not?"""

    name: ClassVar[str] = "training-maps"
    version: ClassVar[int] = 1
    max_states: int = field(default=6, metadata=CONCLUDED)  # the number with the smallest BIC is taken
    seed: int = field(default=0, metadata=CONCLUDED)  # of the starts of the fit

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        return {}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        return Table.of([weight_statistics(checkpoint)])

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Two runs of each size, with four steps in common."""
        for size, runs in steps_by_size(checkpoints).items():
            num_steps = len(set.intersection(*runs.values()))
            if len(runs) < 2 or num_steps < 4:
                raise ConfigError(
                    f"of the size {spelled_size(size)} there are {len(runs)} runs with {num_steps} common steps; "
                    "a map needs two runs and four steps at least"
                )

    def conclude(self, measured: Measured) -> Table:
        sizes: dict[int, dict[str, dict[int, Row]]] = {}
        for checkpoint, table in measured:
            sizes.setdefault(checkpoint.num_parameters, {}).setdefault(checkpoint.name, {})[checkpoint.step or 0] = table.rows[0]
        rows: list[Row] = []
        for size, runs in sizes.items():
            steps = sorted(set.intersection(*(set(of_run) for of_run in runs.values())))
            names = list(next(iter(next(iter(runs.values())).values())))
            values = np.array([[[float(str(of_run[step][name])) for name in names] for step in steps] for of_run in runs.values()])
            candidates = range(2, min(self.max_states, len(steps)) + 1)
            found = best_training_map(zscored(values), candidates, seed=self.seed)
            paths: dict[str, list[int]] = dict(zip(runs, found.states.tolist(), strict=True))
            by_run: dict[Hashable, Sequence[int]] = dict(paths.items())
            far = outliers(seeds_apart(by_run)) if len(paths) > 3 else []
            rows += [
                {"size": size, "run": run, "step": step, "state": state, "is_outlier": run in far}
                for run, path in paths.items()
                for step, state in zip(steps, path, strict=True)
            ]
        return Table.of(rows)

    def draw(self, table: Table, figure: Figure) -> None:
        draw_training_maps(table, figure)


def weight_statistics(checkpoint: Checkpoint) -> Row:
    """Of all matrices together and of all biases together: mean, spread, norms and largest value."""
    tensors = read_tensors(checkpoint.folder)
    row: dict[str, float] = {}
    for kind, wanted in (("weights", True), ("vectors", False)):
        chosen = [
            tensor.float().flatten().numpy() for tensor in tensors.values() if (tensor.ndim > 1) == wanted and tensor.is_floating_point()
        ]
        values = np.concatenate(chosen).astype(np.float64)
        row |= {
            f"{kind} mean": float(values.mean()),
            f"{kind} standard deviation": float(values.std()),
            f"{kind} l1 over l2": float(np.abs(values).sum() / np.sqrt((values**2).sum())),
            f"{kind} l2": float(np.sqrt((values**2).sum())),
            f"{kind} largest": float(np.abs(values).max()),
        }
    return row


def draw_training_maps(table: Table, figure: Figure) -> None:
    """A strip a seed: along it the steps, in the colours of the states; outliers are marked."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    sizes = list(table.by("size").items())
    num_states = int(max(table.numbers("state"))) + 1
    colours = colormaps[_COLOURS](np.linspace(0.05, 0.95, num_states))
    num_runs = max(len(group.by("run")) for _, group in sizes)
    figure.set_size_inches(9, (0.9 + 0.3 * num_runs) * len(sizes) + 0.4)
    for axes, ((size,), group) in zip(figure.subplots(len(sizes), 1, squeeze=False).flat, sizes, strict=True):
        runs = group.by("run")
        steps = sorted({int(str(step)) for step in group.column("step")})
        for at, run in enumerate(runs.values()):
            for row in run:
                place = steps.index(int(str(row["step"])))
                axes.barh(at, 1, left=place, height=0.8, color=colours[int(str(row["state"]))], edgecolor="white", linewidth=0.6)
        far = {name for (name,), run in runs.items() if any(row["is_outlier"] for row in run)}
        axes.set_yticks(range(len(runs)), [f"{name}{'  (outlier)' if name in far else ''}" for (name,) in runs])
        for label, (name,) in zip(axes.get_yticklabels(), runs, strict=True):
            label.set_color("C3" if name in far else "black")
        every = max(1, len(steps) // 14)
        shown = range(0, len(steps), every)
        axes.set_xticks([at + 0.5 for at in shown], [f"{steps[at]:,}" for at in shown], rotation=40, fontsize=8)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(0, len(steps))
        axes.set_xlabel("training step of the checkpoint")
        plain(axes, spelled_size(float(str(size))))
        axes.grid(visible=False)
    handles = [Patch(color=colour, label=str(state)) for state, colour in enumerate(colours)]
    figure.legend(handles=handles, loc="outside right center", title="state", frameon=False, fontsize=8, title_fontsize=8)
