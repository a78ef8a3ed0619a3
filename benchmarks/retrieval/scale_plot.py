"""Draws what `benchmarks.retrieval.scale` measured: times by kind of search, and size against recall."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(measured: Mapping[str, Any], path: Path) -> None:
    """Write an SVG of two panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = measured["results"]
    figure, (times, sizes) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    kinds = [("exact", "bm25"), ("exact", "dense"), ("exact", "hybrid"), ("ann", "dense"), ("ann", "hybrid")]
    width = 0.8 / len(results)
    for i, result in enumerate(results):
        places = [place + i * width for place in range(len(kinds))]
        middle = [result[kind][mode]["p50_ms"] for kind, mode in kinds]
        slow = [result[kind][mode]["p99_ms"] - p50 for (kind, mode), p50 in zip(kinds, middle, strict=True)]
        times.bar(places, middle, width, yerr=[[0] * len(kinds), slow], capsize=2, label=f"{result['store']} {result['vectors']}")
        recall = result["ann_recall"]["dense"]
        size = (result["bytes"] + result["ann_bytes"]) / 1e6
        sizes.scatter(size, recall)
        sizes.annotate(f" {result['store']} {result['vectors']}", (size, recall))
    times.set_xticks([place + 0.4 - width / 2 for place in range(len(kinds))], ["words", "dense", "hybrid", "dense,\nANN", "hybrid,\nANN"])
    times.set_yscale("log")
    times.set_ylabel("milliseconds: p50, whisker to p99")
    times.set_title(f"One search of {results[0]['passages']:,} passages")
    times.legend()
    sizes.set_xlabel("MB on disk, with the approximate index")
    sizes.set_ylabel("recall@10 of the approximate dense search")
    sizes.set_title("Size and recall")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
