"""Can it be foretold which rows a large model will know by heart: from smaller models, or from its own earlier checkpoints?

As in Biderman et al. 2023, arXiv:2304.11158: the rows that a predictor knows are the prediction, those that the target knows the truth,
over the rows that all of them have read. What it measures is the study `memorization`'s, with the same settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.memorization import Memorization
from tripod.analysis.picture import plain, spelled_size
from tripod.analysis.shares import wilson
from tripod.analysis.study import Measured
from tripod.errors import ConfigError
from tripod.evaluation.table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction beside the truth, in rows."""

    tp: int
    fp: int
    fn: int
    tn: int

    @staticmethod
    def of(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> Prediction:
        tp, fp, fn = (int((one & other).sum()) for one, other in ((predicted, true), (predicted, ~true), (~predicted, true)))
        return Prediction(tp, fp, fn, len(true) - tp - fp - fn)

    def rates(self) -> Iterator[tuple[str, int, int]]:
        """Name, cases and of how many."""
        yield "precision", self.tp, self.tp + self.fp
        yield "recall", self.tp, self.tp + self.fn
        yield "false positive rate", self.fp, self.fp + self.tn
        yield "false negative rate", self.fn, self.fn + self.tp


@dataclass(frozen=True, kw_only=True)
class PredictableMemorization(Memorization):
    """Predicts the largest model at its last step, over the rows that all given checkpoints have read."""

    name: ClassVar[str] = "predictable-memorization"

    def conclude(self, measured: Measured) -> Table:
        """Rows `precision` and so on of each predictor (`kind` says what it is beside the target), and `correlation` of each pair."""
        known = [(checkpoint, _scores(table)) for checkpoint, table in measured if len(table)]
        if len(known) < 2:
            raise ConfigError("a prediction needs at least two checkpoints that have read rows; give more runs, or more of their steps")
        common = sorted(set.intersection(*(set(scores) for _, scores in known)))
        if not common:
            raise ConfigError("there is no row that all of the checkpoints have read; leave the earliest out (--step)")
        scores = [(checkpoint, np.array([found[row] for row in common])) for checkpoint, found in known]
        target, of_target = max(scores, key=lambda one: (one[0].num_parameters, one[0].step or 0))
        rows: list[Row] = []
        for checkpoint, of_predictor in scores:
            if checkpoint is not target:
                about = {**checkpoint.about(), "target": target.name, "target_step": target.step, "kind": _kind(checkpoint, target)}
                prediction = Prediction.of(of_predictor == self.length, of_target == self.length)
                rows += [{**about, **row} for row in _rates(prediction, len(common))]
        for (first, of_first), (second, of_second) in combinations(scores, 2):
            about = {**first.about(), "target": second.name, "target_step": second.step, "kind": _kind(first, second)}
            for name, one, other in (
                ("correlation of scores", of_first, of_second),
                ("correlation of memorized", of_first == self.length, of_second == self.length),
            ):
                rows.append(
                    {**about, "statistic": name, "value": _correlation(one, other), "low": None, "high": None, "count": len(common)}
                )
        return Table.of(rows)

    def draw(self, table: Table, figure: Figure) -> None:
        figure.set_size_inches(11, 5)
        bars, heat = figure.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_rates(bars, table)
        _draw_correlations(heat, table, figure)


def _scores(table: Table) -> Mapping[int, int]:
    return {int(row): int(matched) for row, matched in zip(table.numbers("row"), table.numbers("matched"), strict=True)}


def _kind(checkpoint: Checkpoint, other: Checkpoint) -> str:
    """What a checkpoint is beside another: "smaller model", "earlier step", or both."""
    parts = []
    if checkpoint.folder.parent != other.folder.parent:
        larger = checkpoint.num_parameters - other.num_parameters
        parts.append("smaller model" if larger < 0 else "larger model" if larger else "other model of its size")
    later = (checkpoint.step or 0) - (other.step or 0)
    if later:
        parts.append("earlier step" if later < 0 else "later step")
    return ", ".join(parts)


def _rates(prediction: Prediction, total: int) -> Iterator[Row]:
    for name in ("tp", "fp", "fn", "tn"):
        share, low, high = wilson(getattr(prediction, name), total)
        yield {"statistic": name, "value": share, "low": low, "high": high, "count": total}
    for name, cases, of in prediction.rates():
        if of:
            share, low, high = wilson(cases, of)
            yield {"statistic": name, "value": share, "low": low, "high": high, "count": of}


def _correlation(one: NDArray[np.int64] | NDArray[np.bool_], other: NDArray[np.int64] | NDArray[np.bool_]) -> float | None:
    """Pearson's; None where one of them never varies."""
    return None if one.std() == 0 or other.std() == 0 else float(np.corrcoef(one, other)[0, 1])


def _label(row: Mapping[str, Cell], name: str, step: str) -> str:
    return f"{row[name]}\nstep {row[step]}"


def _draw_rates(axes: Axes, table: Table) -> None:
    """Precision and recall of each predictor, as bars from left to right: smaller models by size, then earlier steps."""
    predictors = list(table.where(statistic="recall").sorted_by("kind", "size", "step").by("model", "step", "seed").values())
    predictors.sort(
        key=lambda rows: (rows.rows[0]["kind"] == "earlier step", float(rows.rows[0]["size"] or 0), int(rows.rows[0]["step"] or 0))
    )
    places = {(row["model"], row["step"], row["seed"]): place for place, rows in enumerate(predictors) for row in rows}
    for shift, name, colour in ((-0.2, "precision", "tab:blue"), (0.2, "recall", "tab:orange")):
        shown = [row for row in table.where(statistic=name) if (row["model"], row["step"], row["seed"]) in places]
        at = [places[row["model"], row["step"], row["seed"]] + shift for row in shown]
        values = [float(row["value"] or 0) for row in shown]
        errors = [
            [value - float(row["low"] or 0) for value, row in zip(values, shown, strict=True)],
            [float(row["high"] or 0) - value for value, row in zip(values, shown, strict=True)],
        ]
        axes.bar(at, values, 0.38, yerr=errors, color=colour, label=name, error_kw={"linewidth": 0.8, "capsize": 2})
    labels = [f"{spelled_size(float(rows.rows[0]['size'] or 0))}\nstep {rows.rows[0]['step']}" for rows in predictors]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(0, 1.18)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylabel("share of rows")
    axes.set_xlabel("predictor: size and step")
    target = table.rows[0]
    plain(axes, f"Foretelling what {target['target']} knows at step {target['target_step']}")
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)


def _draw_correlations(axes: Axes, table: Table, figure: Figure) -> None:
    pairs = table.where(statistic="correlation of scores")
    names = list(
        dict.fromkeys([*(_label(row, "model", "step") for row in pairs), *(_label(row, "target", "target_step") for row in pairs)])
    )
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 1.0)
    for row in pairs:
        first, second = names.index(_label(row, "model", "step")), names.index(_label(row, "target", "target_step"))
        if row["value"] is not None:
            matrix[first, second] = matrix[second, first] = float(row["value"])
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for (down, right), value in np.ndenumerate(matrix):
        if len(names) <= 10 and np.isfinite(value):
            axes.text(right, down, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black")
    figure.colorbar(image, ax=axes, shrink=0.8, label="Pearson's correlation of scores")
    axes.set_title("Which rows are known, two by two", loc="left", fontsize=10, fontweight="bold")
