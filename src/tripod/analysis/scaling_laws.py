"""The study "scaling-laws": validation losses of runs of several sizes, and the law that they follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.picture import GREY, plain, size_colours, spelled_size
from tripod.analysis.scaling_law import ScalingFit, ScalingLaw, fit_scaling_law
from tripod.analysis.study import CONCLUDED, Measured
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.models.checkpoint import read_tensors
from tripod.training.data.progress import Progress
from tripod.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ScalingLaws:
    """What the validation losses of runs say of larger ones."""

    name: ClassVar[str] = "scaling-laws"
    version: ClassVar[int] = 1
    num_draws: int = field(default=200, metadata=CONCLUDED)  # of the bootstrap over runs
    from_step: int = field(default=1, metadata=CONCLUDED)  # earlier checkpoints are left out: the law is none of the first steps

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        return {"validation": repr(self._loss(checkpoint))}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        sizes = {name: tensor.numel() for name, tensor in read_tensors(checkpoint.folder).items()}
        embedded = sum(size for name, size in sizes.items() if "embed" in name or name == "lm_head.weight")
        return Table.of([{"parameters": sum(sizes.values()) - embedded, "tokens": checkpoint.num_tokens, "loss": self._loss(checkpoint)}])

    def _loss(self, checkpoint: Checkpoint) -> float | None:
        if checkpoint.run is None:
            raise ConfigError(f"{checkpoint.folder} is not of a training run, so its validation loss is not known; give runs")
        records = read_metrics(checkpoint.run.metrics_path)
        found = [float(record["valid_loss"]) for record in records if record["step"] == checkpoint.step and "valid_loss" in record]
        return found[-1] if found else None

    def conclude(self, measured: Measured) -> Table:
        rows = [
            {"series": checkpoint.name, "step": checkpoint.step, **row}
            for checkpoint, table in measured
            for row in table
            if row["loss"] is not None and (checkpoint.step or 0) >= self.from_step
        ]
        if not rows:
            raise ConfigError(
                "no run has a validation loss at a checkpoint; give its recipe `validation` with the steps of the checkpoints"
            )
        return scaling_table(Table.of(rows), num_draws=self.num_draws)

    def draw(self, table: Table, figure: Figure) -> None:
        draw_scaling(table, figure)


def scaling_table(points: Table, *, num_draws: int) -> Table:
    """Points (series, parameters, tokens, loss) with what the law says of them, and the parameters of the law, as rows of two kinds."""
    series = points.column("series")
    fit = fit_scaling_law(
        points.numbers("parameters"), points.numbers("tokens"), points.numbers("loss"), groups=series, num_draws=num_draws
    )
    rows: list[Row] = [
        {"kind": "point", **row, "fitted": float(fit.law.loss(float(str(row["parameters"])), float(str(row["tokens"]))))} for row in points
    ]
    return Table.of([*rows, *_parameter_rows(fit)])


def _parameter_rows(fit: ScalingFit) -> list[Row]:
    rows: list[Row] = [
        {
            "kind": "parameter",
            "parameter": one.name,
            "value": getattr(fit.law, one.name),
            "low": getattr(fit.low, one.name),
            "high": getattr(fit.high, one.name),
        }
        for one in fields(ScalingLaw)
    ]
    return [
        *rows,
        {"kind": "parameter", "parameter": "optimal_size_exponent", "value": fit.law.optimal_size_exponent},
        {"kind": "parameter", "parameter": "relative_error", "value": fit.relative_error},
    ]


def draw_scaling(table: Table, figure: Figure, *, loss: str = "loss (nats a token)") -> None:
    """Losses over tokens with the law's curves, sizes as colours; and beside them what is left of the losses."""
    points = table.where(kind="point")
    law = ScalingLaw(*(table.where(kind="parameter", parameter=one.name).numbers("value")[0] for one in fields(ScalingLaw)))
    colours = size_colours(points.numbers("parameters"))
    figure.set_size_inches(10, 4.6)
    curves, rest = figure.subplots(1, 2, width_ratios=(3, 2))
    for (size,), of_size in points.by("parameters").items():
        assert isinstance(size, int | float)
        tokens, losses = np.array(of_size.numbers("tokens")), np.array(of_size.numbers("loss"))
        along = np.geomspace(tokens.min(), tokens.max(), 60)
        colour = colours[float(size)]
        curves.plot(along, law.loss(float(size), along), color=colour, linewidth=1.2)
        curves.plot(tokens, losses, "o", color=colour, markersize=3.5, label=spelled_size(size))
        rest.plot(tokens, 100 * (losses / law.loss(float(size), tokens) - 1), "o", color=colour, markersize=3.5)
    if law.irreducible > 0.1 * min(points.numbers("loss")):  # else far below the picture
        curves.axhline(law.irreducible, color=GREY, linestyle=":", linewidth=1)
        curves.annotate(
            f"E = {law.irreducible:.2f}",
            (1, law.irreducible),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.35",
        )
    curves.set(xscale="log", yscale="log", xlabel="tokens of training", ylabel=loss)
    curves.legend(title="parameters\n(no embeddings)", fontsize=8, title_fontsize=8, frameon=False)
    plain(curves, f"L = E + A/N^{law.alpha:.2f} + B/D^{law.beta:.2f}")
    rest.axhline(0, color=GREY, linewidth=1)
    rest.set(xscale="log", xlabel="tokens of training", ylabel="observed - fitted (%)")
    plain(rest, "what the law leaves over")
