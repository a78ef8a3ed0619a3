"""The metrics of runs as one Parquet table, for pandas, polars, DuckDB: made from `metrics.jsonl`, which stays the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError, MissingExtraError
from tripod.training.metrics import read_metrics
from tripod.training.run import Run

COLUMNS = {  # by name, the type as Arrow spells it
    "run": "string",
    "step": "int64",
    "loss": "float64",
    "lr": "float64",
    "grad_norm": "float64",
    "num_tokens": "int64",
    "seconds": "float64",
    "is_skipped": "bool",
    "loss_scale": "float64",
    "is_spike": "bool",
    "valid_loss": "float64",
}


def write_metrics_table(runs: Sequence[Run], path: Path) -> int:
    """Write a row for each step of each run, in that order; what a step did not measure is null.

    Args:
        runs: each is named by its folder.
        path: ends in .parquet; a file there is replaced.

    Returns:
        The number of rows.

    Raises:
        ConfigError: `path` has another ending, or a run has measured nothing yet.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "a Parquet table of metrics") from None
    if path.suffix != ".parquet":
        raise ConfigError(f"{path} does not end in .parquet, the one format that is written")
    rows: list[dict[str, Any]] = []
    for run in runs:
        records = [_row(run, record) for record in read_metrics(run.metrics_path)]
        if not records:
            raise ConfigError(f"{run.folder} has measured nothing yet; train it first")
        rows += records
    schema = pyarrow.schema([(name, getattr(pyarrow, "bool_" if kind == "bool" else kind)()) for name, kind in COLUMNS.items()])
    with atomic_file(path) as stream:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), stream)
    return len(rows)


def _row(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """A line of the log leaves out what is false; the table says it, where a step was trained."""
    flags = {name: False for name, kind in COLUMNS.items() if kind == "bool"} if "loss" in record else {}
    return {"run": str(run.folder), **flags, **record}
