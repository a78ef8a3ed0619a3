"""The picture of memorisation: over training, against repetition, by rows, and beside a Poisson stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tripod.analysis.picture import GREY, log_steps, plain, size_colours, spelled_size
from tripod.evaluation.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEWEST = 64  # rows read, below which a share says little

Colour = tuple[float, float, float, float]


def draw_memorization(table: Table, figure: Figure) -> None:
    """Four panels; each series of checkpoints in the colour of its size."""
    figure.set_size_inches(10, 7.4)
    over_steps, repeated, matched, poisson = figure.subplots(2, 2).ravel()
    colours = size_colours(table.numbers("size"))
    series = [
        (rows, colours[float(rows.rows[0]["size"] or 0)], f"{name}, {spelled_size(float(rows.rows[0]['size'] or 0))} parameters")
        for (name, _), rows in table.by("model", "seed").items()
    ]
    for rows, colour, label in series:
        _share_over_steps(over_steps, rows, colour, label)
        last = rows.where(step=max(rows.numbers("step")))
        _share_by_times(repeated, last, colour)
        _tokens_right(matched, last, colour)
        _quantiles(poisson, last, colour)
    log_steps(over_steps, table.numbers("step"))
    over_steps.set_ylabel("rows memorised, % of those read")
    plain(over_steps, "Memorised rows over training")
    over_steps.legend(frameon=False, fontsize=8)
    times = sorted({0.0, *table.where(statistic="memorized of rows read x times").numbers("x")})
    repeated.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    repeated.set_xticks(times, [f"{one:g}" for one in times])
    repeated.set_xticks([], minor=True)
    repeated.set_xlim(-0.3, times[-1] * 1.3)
    repeated.set_xlabel("times that the row was read before the last checkpoint (at least)")
    repeated.set_ylabel("rows memorised, %")
    plain(repeated, "Repetition")
    matched.set_yscale("log")
    matched.set_xlabel("tokens of the continuation that are right")
    matched.set_ylabel("rows, %")
    plain(matched, "How much of a row is known")
    low, high = 0.0, max([1.0, *table.where(statistic="bin count beside Poisson's").numbers("x")])
    poisson.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    poisson.set_xlabel("memorised rows a bin, expected of a Poisson stream")
    poisson.set_ylabel("memorised rows a bin, observed")
    plain(poisson, "Bins in training order")


def _points(rows: Table, statistic: str) -> Iterator[tuple[float, float, float, float]]:
    """x, value, low and high."""
    for row in rows.where(statistic=statistic):
        value = float(row["value"] or 0)
        yield (
            float(row["x"] or 0),
            value,
            value if row["low"] is None else float(row["low"]),
            value if row["high"] is None else float(row["high"]),
        )


def _share_over_steps(axes: Axes, rows: Table, colour: Colour, label: str) -> None:
    at_least = rows.where(lambda row: row["statistic"] == "memorized" and int(row["count"] or 0) >= _FEWEST)
    found = sorted(
        (step, value, low, high) for (step,), at in at_least.by("step").items() for _, value, low, high in _points(at, "memorized")
    )
    steps, values, lows, highs = ([float(one[column] or 0) for one in found] for column in range(4))
    axes.plot(steps, [100 * value for value in values], color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
    axes.fill_between(steps, [100 * low for low in lows], [100 * high for high in highs], color=colour, alpha=0.15, linewidth=0)


def _share_by_times(axes: Axes, rows: Table, colour: Colour) -> None:
    found = sorted(_points(rows, "memorized of rows read x times"))
    if not found:
        return
    times, values, lows, highs = zip(*found, strict=True)
    errors = [
        [100 * (value - low) for value, low in zip(values, lows, strict=True)],
        [100 * (high - value) for value, high in zip(values, highs, strict=True)],
    ]
    axes.errorbar(times, [100 * value for value in values], yerr=errors, color=colour, marker="o", markersize=4, linewidth=1.2, capsize=2)


def _tokens_right(axes: Axes, rows: Table, colour: Colour) -> None:
    found = [(x, 100 * value) for x, value, *_ in sorted(_points(rows, "rows with x tokens right")) if value]
    axes.plot(*zip(*found, strict=True), color=colour, marker="o", markersize=3.5, linewidth=0.8, linestyle=":")


def _quantiles(axes: Axes, rows: Table, colour: Colour) -> None:
    found = list(_points(rows, "bin count beside Poisson's"))
    axes.plot(
        [x for x, *_ in found], [value for _, value, *_ in found], color=colour, marker=".", linestyle="none", markersize=5, alpha=0.8
    )
