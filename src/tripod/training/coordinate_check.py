"""muP's coordinate check (Yang et al. 2022, arXiv:2203.03466, D.1): what updates do to activations must not depend on the width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tripod.errors import ConfigError, MissingExtraError
from tripod.models.initialize import initial_language_model
from tripod.training.adafactor import open_optimizer
from tripod.training.dropout import RowDropout
from tripod.training.gradients import accumulate_gradients, mixed_precision
from tripod.training.packing import Packing
from tripod.training.recipe import Recipe

LOGITS = "logits"
LARGEST_SLOPE = 0.25  # of one that is taken for level: without muP the slopes of `tests/training/test_mup.py` are above 0.3


@dataclass(frozen=True, slots=True)
class Coordinates:
    """How much a few updates change the activations of a model: the root mean square of the change, by place."""

    width: int
    changes: dict[str, float]  # "block 0", ..., "logits"


def check_coordinates(recipe: Recipe, widths: Sequence[int], *, num_updates: int = 4, rows: int = 4) -> list[Coordinates]:
    """Train models of several widths a few steps on one random batch, at the recipe's peak rate, heads of one size.

    Args:
        recipe: of which the model, the optimizer and the seeds are used. With `model.mup_base_width`, by muP.
        widths: hidden sizes, multiples of the recipe's head size.
        num_updates: of each model.
        rows: of the batch.

    Raises:
        ConfigError: fewer than two widths, one that is no multiple of the head size, or one with which the recipe is unsound.
    """
    if len(set(widths)) < 2:
        raise ConfigError(f"widths {', '.join(map(str, widths))}: to compare takes two different ones; give for example 64,128,256")
    head_size = recipe.model.hidden_size // recipe.model.num_heads
    if wrong := [width for width in widths if width < head_size or width % head_size]:
        raise ConfigError(f"widths {', '.join(map(str, wrong))} are not multiples of the recipe's head size {head_size}")
    return [_measure(_of_width(recipe, width), num_updates, rows) for width in widths]


def slopes(found: Sequence[Coordinates]) -> dict[str, float]:
    """By place, the power of the width with which the change grows: near 0 under muP."""
    xs = [math.log2(one.width) for one in found]
    mean_x = math.fsum(xs) / len(xs)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    return {
        place: math.fsum((x - mean_x) * math.log2(one.changes[place]) for x, one in zip(xs, found, strict=True)) / spread
        for place in found[0].changes
    }


def places_beyond(found: Sequence[Coordinates]) -> list[str]:
    """Where the change depends on the width: a slope beyond `LARGEST_SLOPE`; empty if muP holds.

    Of blocks either way; of logits only where they grow: under muP what the initial head adds to their change vanishes as the root of
    the width, and with few updates it is most of it.
    """
    return [place for place, slope in slopes(found).items() if not (slope if place == LOGITS else abs(slope)) <= LARGEST_SLOPE]


def plot_coordinates(found: Sequence[Coordinates], path: Path) -> None:
    """One line a place, over the width, both axes logarithmic, into a file of the kind that its name says.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots", "drawing a coordinate check") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="hidden size", ylabel="change of activations (RMS)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for place in found[0].changes:
        axes.plot([one.width for one in found], [one.changes[place] for one in found], marker="o", label=place)
    axes.legend()
    figure.savefig(path, dpi=150)


def _of_width(recipe: Recipe, width: int) -> Recipe:
    model = recipe.model
    inner = None if model.intermediate_size is None else model.intermediate_size * width // model.hidden_size
    num_heads = width * model.num_heads // model.hidden_size
    return replace(recipe, model=replace(model, hidden_size=width, intermediate_size=inner, num_heads=num_heads, num_kv_heads=None))


def _measure(recipe: Recipe, num_updates: int, rows: int) -> Coordinates:
    wanted = recipe.model
    model = initial_language_model(wanted.config(), recipe.seeds.initialization, wanted.initialization, base_width=wanted.mup_base_width)
    optimizer = open_optimizer(model, recipe.optimizer, mup_ratio=wanted.mup_ratio)
    generator = torch.Generator().manual_seed(recipe.seeds.order)
    tokens = torch.randint(wanted.vocab_size, (rows, recipe.batch.seq_length + 1), generator=generator)
    seen: dict[str, Tensor] = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, output, number=number: seen.__setitem__(f"block {number}", output.detach()))

    def activations() -> dict[str, Tensor]:
        packing = Packing.of_whole_rows(tokens[:, :-1])
        with torch.no_grad(), mixed_precision(recipe.precision, tokens.device):
            hidden = model.hidden(tokens[:, :-1], packing.positions, packing.attend)
            return {**seen, LOGITS: model.logits(hidden)}

    before = activations()
    for _ in range(num_updates):
        accumulate_gradients(model, tokens, range(rows), micro_rows=rows, precision=recipe.precision, dropout=RowDropout(model, 0.0, 0))
        optimizer.clip_gradients()
        optimizer.update(recipe.optimizer.lr)
    after = activations()
    return Coordinates(
        wanted.hidden_size, {place: (after[place] - before[place]).float().square().mean().sqrt().item() for place in before}
    )
