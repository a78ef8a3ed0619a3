"""The picture of a model's routing: six panels, of its last checkpoint and of the way to it; two more of what its run recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tripod.analysis.picture import GREY, log_steps, plain
from tripod.analysis.routing.recorded import MEASURES
from tripod.analysis.routing.remarks import one_text
from tripod.evaluation.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {"token id": ("C3", "o"), "position": ("C0", "s")}
_OF_CLASS = ("C2", "D")
_RULES = {"per-token": ("C1", "max(4, round(f T / E))"), "per-assignment": ("C4", "floor(f k T / E), even")}


def draw_routing(table: Table, figure: Figure) -> None:
    """Of the first model of a table: classes, what experts specialise in, saturation; load, dropped tokens, co-activation."""
    model = table.rows[0]["model"]
    recorded = table.where(model=model).among("measure", MEASURES)
    table = table.where(lambda row: row["measure"] not in MEASURES, model=model)
    steps = sorted({step for step in table.column("step") if isinstance(step, int)})
    last = table if not steps else table.where(step=steps[-1])
    layers = sorted({layer for layer in table.column("layer") if isinstance(layer, int)})
    shown = layers[len(layers) // 2]
    num_columns = 4 if len(recorded) else 3
    figure.set_size_inches(13 / 3 * num_columns, 7.4)
    grid = figure.subplots(2, num_columns)
    _draw_classes(grid[0, 0], last.where(layer=shown), f"layer {shown}")
    _draw_spread(grid[0, 1], last.where(measure="spread"), layers)
    _draw_saturation(grid[0, 2], table, layers)
    _draw_load(grid[1, 0], table.where(layer=shown), f"Load of each expert, layer {shown}")
    _draw_dropped(grid[1, 1], last.where(measure="dropped"))
    _draw_together(grid[1, 2], last.where(layer=shown, measure="co-activation"), f"layer {shown}")
    if len(recorded):
        _draw_saturation(grid[0, 3], recorded, layers, kind="recorded ")
        _draw_load(grid[1, 3], recorded.where(layer=shown), f"Recorded load, layer {shown}", kind="recorded ")
    for remark in one_text(table):
        figure.supxlabel(remark, fontsize=9, x=0.01, ha="left")
    figure.suptitle(f"{model}{f', step {steps[-1]}' if steps else ''}: where its routers send tokens", fontsize=11, x=0.01, ha="left")


def _draw_classes(axes: Axes, rows: Table, title: str) -> None:
    """Shares against even ones as colours; experts in the order of the class that prefers them most."""
    share = rows.where(measure="share")
    classes = list(dict.fromkeys(str(group) for group in share.column("group")))
    ratios = np.array([share.where(group=name).sorted_by("expert").numbers("value") for name in classes])
    ratios = np.log2(np.maximum(ratios / share.numbers("chance")[0], 2**-4))
    order = np.lexsort((-ratios.max(0), ratios.argmax(0)))
    image = axes.imshow(ratios[:, order], cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    _colours(axes, image, "times an even share", {-3: "1/8", -1.5: "1/3", 0: "1", 1.5: "3", 3: "8"})
    axes.set_yticks(range(len(classes)), [name.replace("_", " ")[:16] for name in classes])
    axes.set_xticks(range(len(order)), [str(one) for one in order], fontsize=7 if len(order) <= 32 else 4)
    axes.set_xlabel("expert")
    tested = rows.where(lambda row: row["measure"] == "divergence")
    p = f", p = {tested.numbers('p')[0]:.2g}" if len(tested) else ""
    plain(axes, f"Choices of a class, {title}{p}")
    axes.grid(visible=False)


def _draw_spread(axes: Axes, rows: Table, layers: list[int]) -> None:
    kinds = list(dict.fromkeys(str(group) for group in rows.column("group")))
    for at, kind in enumerate(kinds):
        colour, marker = _KINDS.get(kind, _OF_CLASS)
        found = rows.where(group=kind).sorted_by("layer")
        places = np.array([layers.index(int(layer)) for layer in found.numbers("layer")]) + 0.18 * (at - (len(kinds) - 1) / 2)
        middle, low, high = (np.array(found.numbers(name)) for name in ("value", "low", "high"))
        axes.errorbar(places, middle, [middle - low, high - middle], fmt=marker, color=colour, markersize=5, label=f"by {kind}")
        axes.plot(places, found.numbers("chance"), "_", color=colour, markersize=9, markeredgewidth=1.5, alpha=0.6)
    axes.plot([], [], "_", color=GREY, label="by chance")
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_ylim(0, None)
    axes.set_xlabel("layer")
    axes.set_ylabel("standard deviation over experts")
    plain(axes, "How far routing ratios are from even ones")
    axes.legend(frameon=False, fontsize=8)


def _draw_saturation(axes: Axes, table: Table, layers: list[int], *, kind: str = "") -> None:
    from matplotlib import colormaps

    found = table.where(measure=f"{kind}overlap with the last")
    steps = [float(step) for step in found.column("step") if isinstance(step, int)]
    if len(set(steps)) < 2:
        axes.axis("off")
        axes.text(0.5, 0.5, f"one {'record' if kind else 'checkpoint'}:\nno way to it", ha="center", va="center", color=GREY)
        return
    for at, layer in enumerate(layers):
        colour = colormaps["viridis"](0.08 + 0.82 * at / max(1, len(layers) - 1))
        line = found.where(layer=layer).sorted_by("step")
        axes.plot(line.numbers("step"), line.numbers("value"), "o-", color=colour, markersize=3, label=f"layer {layer}")
        apart = table.where(measure="divergence of token ids from the last", layer=layer).sorted_by("step")
        axes.plot(apart.numbers("step"), apart.numbers("value"), ":", color=colour, linewidth=1.5)
    axes.axhline(found.numbers("chance")[0], color=GREY, linewidth=1, linestyle="--")
    if not kind:
        axes.plot([], [], ":", color=GREY, label="divergence of\ntoken ids (bits)")
    axes.plot([], [], "--", color=GREY, linewidth=1, label="overlap by chance")
    log_steps(axes, steps)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of choices as at the end")
    plain(axes, "Recorded saturation" if kind else "Router saturation")
    axes.legend(frameon=False, fontsize=7, loc="best")


def _draw_load(axes: Axes, rows: Table, title: str, *, kind: str = "") -> None:
    found = rows.where(measure=f"{kind}load")
    even = found.numbers("chance")[0]
    steps = sorted({step for step in found.column("step") if isinstance(step, int)})
    if len(steps) > 1:
        for of_expert in found.by("expert").values():
            line = of_expert.sorted_by("step")
            axes.plot(line.numbers("step"), line.numbers("value"), linewidth=1, alpha=0.8)
        log_steps(axes, steps)
    else:
        axes.bar(range(len(found)), sorted(found.numbers("value"), reverse=True), color="C0")
        axes.set_xlabel("experts, by load")
    axes.axhline(even, color="k", linewidth=1.2, linestyle="--", label="even")
    axes.set_ylim(0, None)
    axes.set_ylabel("share of all choices")
    dead = rows.where(measure=f"{kind}dead experts").sorted_by("step")
    plain(axes, f"{title}; dead at the end: {dead.numbers('value')[-1]:.0f}")
    axes.legend(frameon=False, fontsize=8)


def _draw_dropped(axes: Axes, rows: Table) -> None:
    for rule, (colour, label) in _RULES.items():
        of_layers = [found.sorted_by("x") for found in rows.where(group=rule).by("layer").values()]
        for line in of_layers:
            axes.plot(line.numbers("x"), 100 * np.array(line.numbers("value")), color=colour, linewidth=0.7, alpha=0.5)
        middle = np.mean([line.numbers("value") for line in of_layers], axis=0)
        axes.plot(of_layers[0].numbers("x"), 100 * middle, color=colour, linewidth=2.2, label=label)
    axes.set_ylim(0, None)
    axes.set_xlabel("position in the row")
    axes.set_ylabel("choices beyond capacity (%)")
    plain(axes, "Dropped towards the end")
    axes.legend(frameon=False, fontsize=8, title="rule of capacity; thin: a layer", title_fontsize=8)


def _draw_together(axes: Axes, rows: Table, title: str) -> None:
    size = int(max([*rows.numbers("expert"), *rows.numbers("x")], default=0)) + 1
    together = np.zeros((size, size))
    for expert, other, value in zip(rows.numbers("expert"), rows.numbers("x"), rows.numbers("value"), strict=True):
        together[int(expert), int(other)] = value
    image = axes.imshow(together, cmap="magma_r", vmin=0, aspect="auto", interpolation="nearest")
    _colours(axes, image, "share of the tokens of the row's expert", None)
    axes.set_xlabel("chosen too")
    axes.set_ylabel("expert")
    axes.locator_params(integer=True)
    plain(axes, f"Experts chosen together, {title}")
    axes.grid(visible=False)


def _colours(axes: Axes, image: object, label: str, ticks: dict[float, str] | None) -> None:
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)  # type: ignore[arg-type]
    bar.set_label(label, fontsize=8)
    if ticks is not None:
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
