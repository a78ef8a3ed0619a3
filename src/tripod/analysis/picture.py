"""What the pictures of all studies have in common: sizes as colours, steps on a scale that shows the first ones, quiet axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "0.55"


def size_colours(sizes: Iterable[float]) -> dict[float, tuple[float, float, float, float]]:
    """A colour for each size, small dark to large bright, in their order."""
    from matplotlib import colormaps

    ordered = sorted(set(sizes))
    shades = colormaps["viridis"]
    return {size: shades(0.08 + 0.82 * rank / max(1, len(ordered) - 1)) for rank, size in enumerate(ordered)}


def spelled_size(num_parameters: float) -> str:
    """160000000 -> "160M"."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if num_parameters >= factor:
            return f"{num_parameters / factor:.3g}{unit}"
    return str(int(num_parameters))


def log_steps(axes: Axes, steps: Iterable[float]) -> None:
    """Steps on a logarithmic scale that has a place for step 0."""
    largest = max(steps, default=1)
    axes.set_xscale("symlog", base=10, linthresh=1, linscale=0.4)
    ticks = [0.0, *(10.0**power for power in range(math.ceil(math.log10(max(largest, 1))) + 1) if 10.0**power <= largest)]
    axes.set_xticks(ticks, ["0", *(_spelled(tick) for tick in ticks[1:])])
    axes.set_xlim(-0.15, max(largest, 1) * 1.3)
    axes.set_xlabel("training step (logarithmic)")


def plain(axes: Axes, title: str = "") -> None:
    """Quiet axes with the title on the left."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")


def _spelled(step: float) -> str:
    return f"{step:g}" if step < 1000 else f"{step / 1000:g}k"
