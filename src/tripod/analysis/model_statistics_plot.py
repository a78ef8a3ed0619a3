"""The picture of weights and activations over training, for the largest model of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tripod.analysis.picture import log_steps, plain, spelled_size
from tripod.evaluation.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_statistics(table: Table, figure: Figure) -> None:
    """Four panels: the loss with its spikes, how far weights have moved, the residual stream, and its outliers."""
    figure.set_size_inches(10, 7.2)
    loss, moved, stream, outliers = figure.subplots(2, 2).ravel()
    largest = table.where(size=max(table.numbers("size"), default=0))
    chosen = next(iter(largest.by("model", "seed").values()))
    _draw_loss(loss, chosen)
    _draw_moved(moved, chosen)
    _by_layer(stream, chosen.where(kind="activation", statistic="rms"))
    stream.set_yscale("log")
    stream.set_ylabel("root mean square")
    plain(stream, "Residual stream behind each layer")
    _by_layer(outliers, chosen.where(kind="activation", statistic="excess kurtosis"))
    outliers.set_yscale("symlog", linthresh=1)
    outliers.set_ylabel("excess kurtosis (0: normal)")
    plain(outliers, "Outliers of the residual stream")
    for axes in (loss, moved, stream, outliers):
        log_steps(axes, chosen.numbers("step"))
    about = chosen.rows[0]
    figure.suptitle(f"{about['model']}, {spelled_size(float(about['size'] or 0))} parameters", fontsize=11, x=0.01, ha="left")


def _draw_loss(axes: Axes, rows: Table) -> None:
    curve = rows.where(statistic="loss").sorted_by("step")
    spikes = rows.where(statistic="loss spike")
    axes.plot(curve.numbers("step"), curve.numbers("value"), color="tab:blue", linewidth=1.0)
    if len(spikes):
        axes.plot(spikes.numbers("step"), spikes.numbers("value"), color="tab:red", marker="v", linestyle="none", label="spike")
        axes.legend(frameon=False, fontsize=8)
    axes.set_ylabel("training loss, nats a token")
    plain(axes, "Loss and its spikes")


def _draw_moved(axes: Axes, rows: Table) -> None:
    """The mean over layers, for each part that is a matrix."""
    for (part,), found in rows.where(kind="weight", statistic="moved").by("part").items():
        if "norm" in str(part) or not str(part).endswith("weight"):
            continue
        means = sorted((float(step or 0), sum(at.numbers("value")) / len(at)) for (step,), at in found.by("step").items())
        name = str(part).removesuffix(".weight").removeprefix("gpt_neox.").removeprefix("model.")
        axes.plot([step for step, _ in means], [value for _, value in means], marker="o", markersize=3, linewidth=1.2, label=name)
    axes.set_ylabel("|w - w0| / |w0|, mean over layers")
    plain(axes, "How far weights have moved")
    if axes.lines:
        axes.legend(frameon=False, fontsize=7)


def _by_layer(axes: Axes, rows: Table) -> None:
    from matplotlib import colormaps

    layers = sorted(set(rows.numbers("layer")))
    for layer in layers:
        at = rows.where(layer=int(layer)).sorted_by("step")
        shade = colormaps["viridis"](0.9 * layer / max(1.0, layers[-1]))
        axes.plot(at.numbers("step"), at.numbers("value"), color=shade, marker="o", markersize=3, linewidth=1.2, label=f"layer {layer:.0f}")
    if layers:  # a study of weights alone has no activations
        axes.legend(frameon=False, fontsize=7, ncols=2)
