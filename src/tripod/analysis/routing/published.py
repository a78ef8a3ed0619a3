"""OLMoE's and Mixtral's routing by domain, from the counts that OLMoE's authors released (Muennighoff et al. 2024, arXiv:2409.02060)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tripod.analysis.picture import GREY, plain
from tripod.analysis.routing.specialization import divergence, doublings, shares
from tripod.evaluation.intervals import bootstrap
from tripod.evaluation.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOMAINS = ("arxiv", "book", "c4", "github", "wikipedia")
MODELS: Mapping[str, tuple[str, int, int, tuple[int, int, int]]] = {  # name: of the files, experts, choices a token, layers
    "OLMoE-1B-7B": ("olmoe", 64, 8, (0, 7, 15)),
    "Mixtral-8x7B": ("mistral", 8, 2, (0, 15, 31)),
}
_COLOURS = {"arxiv": "C3", "book": "C2", "c4": "0.6", "github": "C0", "wikipedia": "C1"}
_FORMS = {
    **dict.fromkeys(("doublings", "low", "high"), ".2f"),
    "by chance": ".3f",
    "bits": ".3f",
    "largest share": ".1%",
    "even share": ".1%",
}
_SEED = 2024
_DIFFERENCE = "difference"


def expert_counts(data: Path, model: str) -> NDArray[np.int64]:
    """How often each expert was chosen: [layers, domains, experts]."""
    name, num_experts, _, layers = MODELS[model]
    counts = np.zeros((len(layers), len(DOMAINS), num_experts), np.int64)
    for at, domain in enumerate(DOMAINS):
        of_layers = json.loads((data / "olmoe-routing" / f"{name}.expert_counts.{domain}.json").read_text(encoding="utf-8"))
        for layer, of_experts in enumerate(of_layers):
            for expert, count in of_experts.items():
                counts[layer, at, int(expert)] = count
    return counts


def share_table(data: Path) -> Table:
    """Of each domain's tokens, the share for which an expert is among the chosen: a row a model, layer, expert and domain."""
    rows: list[Row] = []
    for model, (_, num_experts, top_k, layers) in MODELS.items():
        of_tokens = shares(expert_counts(data, model)) * top_k
        for layer, of_domains in zip(layers, of_tokens, strict=True):
            rows += [
                {"model": model, "layer": layer, "expert": expert, "domain": domain, "share": share, "even": top_k / num_experts}
                for expert in range(num_experts)
                for domain, share in zip(DOMAINS, of_domains[:, expert].tolist(), strict=True)
            ]
    return Table.of(rows)


def specialization_table(data: Path) -> Table:
    """The figures: a row a model and layer, all layers together, and the difference of the two models with its interval."""
    generator = np.random.default_rng(_SEED)
    rows: list[Row] = []
    of_experts: dict[str, NDArray[np.float64]] = {}
    for model, (_, num_experts, top_k, layers) in MODELS.items():
        counts = expert_counts(data, model)
        chance = generator.multinomial(counts.sum(-1), counts.sum(1)[:, None] / counts.sum((1, 2))[:, None, None])
        found, by_chance = (np.stack([doublings(one).mean(0) for one in of_layers]) for of_layers in (counts, chance))  # [layers, experts]
        of_experts[model] = found.ravel()
        largest = (shares(counts) * top_k).reshape(len(layers), -1).max(1)
        for at, layer in enumerate([*map(str, layers), "all"]):
            chosen = slice(None) if layer == "all" else slice(at, at + 1)
            interval = bootstrap(found[chosen].ravel().tolist(), generator)
            rows.append(
                {
                    "model": model,
                    "layer": layer,
                    "doublings": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "by chance": float(by_chance[chosen].mean()),
                    "bits": float(divergence(counts[chosen]).mean()),
                    "largest share": float(largest[chosen].max()),
                    "even share": top_k / num_experts,
                }
            )
    first, second = (one.tolist() for one in of_experts.values())
    apart = [np.mean(generator.choice(first, len(first))) - np.mean(generator.choice(second, len(second))) for _ in range(1000)]
    low, high = np.quantile(apart, [0.025, 0.975]).tolist()
    difference: Row = {"model": _DIFFERENCE, "layer": "all", "doublings": float(np.mean(first) - np.mean(second)), "low": low, "high": high}
    return Table.of([*rows, difference])


def findings(data: Path) -> Table:
    """The figures as they stand on the card."""

    rows: list[Row] = []
    for row in specialization_table(data):
        spelled = {name: "" if value is None else f"{value:{_FORMS.get(name, '')}}" for name, value in row.items()}
        figure = f"{spelled.pop('doublings')} [{spelled.pop('low')}, {spelled.pop('high')}]"
        rows.append({"model": spelled.pop("model"), "layer": spelled.pop("layer"), "doublings": figure, **spelled})
    return Table.of(rows)


def picture_table(data: Path) -> Table:
    """What the picture is drawn from: shares, and the figures below them."""
    return Table.joined([share_table(data), specialization_table(data)])


def draw_domains(table: Table, figure: Figure) -> None:
    """A row a model: in each layer every expert's share of each domain against an even one; at the right the figures."""
    figure.set_size_inches(12, 5.6)
    grid = figure.subplots(2, 4, width_ratios=(3, 3, 3, 2))
    shown = table.where(lambda row: row["domain"] is not None)
    for of_model, (model, (_, num_experts, top_k, layers)) in zip(grid, MODELS.items(), strict=True):
        for axes, layer in zip(of_model, layers, strict=False):
            _draw_layer(axes, shown.where(model=model, layer=layer))
            plain(axes, f"{model}, layer {layer}")
        of_model[0].set_ylabel(f"share of a domain's tokens,\ntimes an even share ({top_k}/{num_experts})")
    for axes in grid[-1, :3]:
        axes.set_xlabel("experts, by their most uneven domain")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=9)
    for axes in grid[:, 3]:
        axes.axis("off")
    _draw_figures(figure.add_subplot(grid[0, 3].get_gridspec()[:, 3]), table.where(lambda row: row["doublings"] is not None))


def _draw_layer(axes: Axes, rows: Table) -> None:
    by_expert = rows.by("expert")
    even = rows.numbers("even")[0]
    ratios = {expert: [share / even for share in group.numbers("share")] for (expert,), group in by_expert.items()}
    order = sorted(ratios, key=lambda expert: max(abs(np.log2(max(ratio, 1e-4))) for ratio in ratios[expert]))
    axes.axhline(1, color=GREY, linewidth=1)
    for domain, colour in _COLOURS.items():
        found = rows.where(domain=domain)
        values = dict(zip(found.column("expert"), found.numbers("share"), strict=True))
        axes.plot(range(len(order)), [values[e] / even for e in order], "o", color=colour, markersize=3.5, alpha=0.85, label=domain)
    axes.set_yscale("log", base=2)
    axes.set_ylim(2**-8, 2**4)
    axes.set_yticks([2.0**power for power in range(-8, 5, 2)], ["1/256", "1/64", "1/16", "1/4", "1", "4", "16"])
    axes.set_xticks([])


def _draw_figures(axes: Axes, table: Table) -> None:
    names = ["first", "middle", "last", "all"]
    for model, colour, shift in (("OLMoE-1B-7B", "C4", -0.08), ("Mixtral-8x7B", "C5", 0.08)):
        rows = table.where(model=model)
        middle, low, high = (np.array(rows.numbers(name)) for name in ("doublings", "low", "high"))
        places = np.arange(len(names)) + shift
        axes.errorbar(places, middle, [middle - low, high - middle], fmt="o", color=colour, markersize=6, linewidth=2, label=model)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0, 2.2)
    axes.set_xlabel("layer")
    axes.set_ylabel("doublings of a share between domains")
    plain(axes, "How specialised, 95 %")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
