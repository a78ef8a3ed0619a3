"""Draws what `benchmarks.retrieval.scale` measured: times by kind of search, and size against recall.

python -m benchmarks.retrieval.scale_plot benchmarks/results/retrieval-scale-DATE.json docs/plots/retrieval-scale.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KINDS = (("exact", "bm25"), ("exact", "dense"), ("exact", "hybrid"), ("ann", "bm25"), ("ann", "dense"), ("ann", "hybrid"))


def plot(measured: Mapping[str, Any], path: Path) -> None:
    """Write an SVG of two panels."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tripod"  # the same file for the same numbers
    from matplotlib import pyplot

    pieces = {name: result for name, result in sorted(measured["pieces"].items()) if name != "readers"}
    figure, (times, sizes) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(pieces)
    for i, (name, result) in enumerate(pieces.items()):
        places = [place + i * width for place in range(len(_KINDS))]
        middle = [result[kind][mode]["p50_ms"] for kind, mode in _KINDS]
        slow = [result[kind][mode]["p99_ms"] - p50 for (kind, mode), p50 in zip(_KINDS, middle, strict=True)]
        times.bar(places, middle, width, yerr=[[0] * len(_KINDS), slow], capsize=2, label=name)
        recall = result["ann_recall"]["dense"]
        size = (result["bytes"] + result["ann_bytes"]) / 1e6
        sizes.scatter(size, recall)
        sizes.annotate(f" {name}", (size, recall))
    labels = ["words", "dense", "hybrid", "words,\nANN", "dense,\nANN", "hybrid,\nANN"]
    times.set_xticks([place + 0.4 - width / 2 for place in range(len(_KINDS))], labels)
    times.set_yscale("log")
    times.set_ylabel("milliseconds: p50, whisker to p99")
    times.set_title(f"One search of {measured['passages']:,} passages")
    times.legend()
    sizes.margins(x=0.3)
    sizes.set_xlabel("MB on disk, with the approximate index")
    sizes.set_ylabel("recall@10 of the approximate dense search")
    sizes.set_title("Size and recall")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
