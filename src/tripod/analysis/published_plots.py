"""Pictures of what Pythia and PolyPythias published, from their files; drawn by the studies' own hands where there is a study for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tripod.analysis.learning_curves import draw_curves
from tripod.analysis.picture import GREY, plain, size_colours, spelled_size
from tripod.analysis.scaling_laws import draw_scaling, scaling_table
from tripod.analysis.training_map_study import draw_training_maps
from tripod.analysis.training_maps import outlier_seeds, read_training_maps
from tripod.evaluation.results import read_results
from tripod.evaluation.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NON_EMBEDDING: Mapping[str, int] = {  # parameters, of the models' own configurations; see tests/analysis/test_published_plots.py
    "70m": 18_915_328, "160m": 85_056_000, "410m": 302_311_424, "1b": 805_736_448, "1.4b": 1_208_602_624, "2.8b": 2_517_652_480,
    "6.9b": 6_444_163_072, "12b": 11_327_027_200,
}  # fmt: skip
_CURVES = (
    ("lambada_openai", "acc"), ("piqa", "acc"), ("arc_easy", "acc"), ("sciq", "acc"), ("winogrande", "acc"), ("arc_challenge", "acc_norm"),
)  # fmt: skip
_FIRST_STEP = 13_000  # of the scaling law: earlier, the loss on these words falls in a way of its own


def _zero_shot(data: Path) -> Table:
    table = read_results([data / "pythia-evals" / "v1.jsonl.gz"])
    return table.where(lambda row: not row["deduped"], shots=0, run="base", variant="")


def curves_table(data: Path) -> Table:
    """Accuracies of the eight sizes at 27 checkpoints."""
    chosen = _zero_shot(data).where(lambda row: (row["task"], row["metric"]) in _CURVES)
    kept = ("model", "step", "task", "metric", "value", "stderr")
    rows = [{"size": NON_EMBEDDING[str(row["size"])], **{name: row[name] for name in kept}} for row in chosen]
    return Table.of(rows).sorted_by("size", "task", "metric", "step")


def draw_published_curves(table: Table, figure: Figure) -> None:
    draw_curves(table, figure, panels=list(_CURVES))


def lambada_losses(data: Path) -> Table:
    """Of the eight sizes, the loss on the last word of LAMBADA's passages: the logarithm of the published perplexity."""
    rows: list[Row] = []
    for row in _zero_shot(data).where(task="lambada_openai", metric="ppl").sorted_by("step"):
        step, tokens, value = row["step"], row["tokens"], row["value"]
        if isinstance(step, int) and step >= _FIRST_STEP and isinstance(value, float):
            size = NON_EMBEDDING[str(row["size"])]
            rows.append({"series": row["model"], "step": step, "parameters": size, "tokens": tokens, "loss": math.log(value)})
    return Table.of(rows).sorted_by("parameters", "step")


def scaling_points(data: Path) -> Table:
    """Those losses and the law that they follow."""
    return scaling_table(lambada_losses(data), num_draws=100)


def draw_published_scaling(table: Table, figure: Figure) -> None:
    draw_scaling(table, figure, loss="loss on LAMBADA's last words (nats a word)")


def stereotypes_table(data: Path) -> Table:
    """Gender pairs of CrowS-Pairs along the interventions and their baselines, second release."""
    table = read_results([data / "pythia-evals" / "v1.jsonl.gz"]).where(task="crows_pairs_english_gender", metric="pct_stereotype")
    chosen = table.where(lambda row: (row["run"] != "base" or row["variant"] == "baseline") and int(str(row["step"])) >= 114_000)
    kept = ("model", "run", "step", "value", "stderr")
    rows = [{"size": NON_EMBEDDING[str(row["size"])], **{name: row[name] for name in kept}} for row in chosen]
    return Table.of(rows).sorted_by("size", "run", "step")


def draw_stereotypes(table: Table, figure: Figure) -> None:
    """A panel a size: the intervention against its baseline, with one standard error."""
    styles = {"base": ("0.35", "baseline"), "intervention": ("C3", "swapped, last 7 %"), "long-intervention": ("C0", "swapped, last 21 %")}
    sizes = table.by("size")
    figure.set_size_inches(11, 3.4)
    grid = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, ((size,), of_size) in zip(grid, sizes.items(), strict=True):
        for (run,), series in of_size.by("run").items():
            colour, label = styles[str(run)]
            steps, values, errors = (np.array(series.numbers(name)) for name in ("step", "value", "stderr"))
            axes.plot(steps / 1000, 100 * values, color=colour, linewidth=1.5, label=label)
            axes.fill_between(steps / 1000, 100 * (values - errors), 100 * (values + errors), color=colour, alpha=0.12, linewidth=0)
        axes.axhline(50, color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel("step (thousands)")
        plain(axes, f"{spelled_size(float(str(size)))} parameters")
    grid[0].set_ylabel("stereotyping sentence is likelier (%)")
    handles: dict[str, object] = {}
    for axes in grid:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=8)  # type: ignore[call-overload]


def arithmetic_table(data: Path) -> Table:
    """Mean accuracy over first operands, sixteen shots."""
    from tripod.analysis.term_frequency_file import read_term_frequency

    groups = read_term_frequency(data).where(shots=16).by("size", "operation", "step")
    rows: list[Row] = [
        {"size": NON_EMBEDDING[str(size)], "operation": operation, "step": step, "value": sum(group.numbers("value")) / len(group)}
        for (size, operation, step), group in groups.items()
    ]
    return Table.of(rows).sorted_by("operation", "size", "step")


def draw_arithmetic(table: Table, figure: Figure) -> None:
    colours = size_colours(table.numbers("size"))
    operations = table.by("operation")
    figure.set_size_inches(9, 3.6)
    grid = figure.subplots(1, len(operations), sharey=True, squeeze=False)[0]
    for axes, ((operation,), group) in zip(grid, operations.items(), strict=True):
        for (size,), series in group.by("size").items():
            steps = np.array(series.numbers("step"))
            label = spelled_size(float(str(size)))
            axes.plot(
                steps / 1000, 100 * np.array(series.numbers("value")), "o-", color=colours[float(str(size))], markersize=3.5, label=label
            )
        axes.set_xlabel("step (thousands)")
        plain(axes, f"{operation}, sixteen shots")
    grid[0].set_ylabel("mean accuracy over first operands (%)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", title="parameters", frameon=False, fontsize=8)


def maps_table(data: Path) -> Table:
    """The published states, with the seeds that we find to be outliers."""
    maps = read_training_maps(data / "pythia-evals" / "polypythias" / "training_maps.tsv")
    far = outlier_seeds(maps)
    rows: list[Row] = [
        {
            "size": NON_EMBEDDING["410m"],
            "run": f"seed {row['seed']}",
            "step": row["step"],
            "state": row["state"],
            "is_outlier": row["seed"] in far,
        }
        for row in maps.sorted_by("seed", "step")
    ]
    return Table.of(rows)


draw_maps = draw_training_maps
