"""Pythia's published accuracies on arithmetic, from its files."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from tripod.evaluation.table import Row, Table

_TERM_SIZES = {
    "125m": "160m", "350m": "410m", "800m": "1b", "1.3b": "1.4b", "2.7b": "2.8b", "6.7b": "6.9b", "13b": "12b",
}  # fmt: skip


def read_term_frequency(data: Path) -> Table:
    """Accuracy on arithmetic by model, checkpoint, operation, first operand and shots, 6,000 rows a model.

    Raises:
        FileNotFoundError: a model's file is absent.
    """
    rows: list[Row] = []
    for old, size in _TERM_SIZES.items():
        path = data / "pythia-term-frequency" / f"pythia-{old}-deduped.csv.gz"
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                *_, operation, operand = line["task"].split("_")
                rows.append(
                    {
                        "model": f"pythia-{size}-deduped",
                        "size": size,
                        "step": int(line["checkpoint"]),
                        "operation": operation,
                        "operand": int(operand),
                        "shots": int(line["fewshot"]),
                        "value": float(line["acc"]),
                        "stderr": float(line["acc_stderr"]),
                    }
                )
    return Table.of(rows)
