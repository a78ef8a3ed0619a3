"""How weights and activations change over training, and where the loss spikes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.model_statistics_plot import draw_statistics
from tripod.analysis.study import Measured
from tripod.analysis.tensor_statistics import activation_rows, weight_rows
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table
from tripod.training.data.progress import Progress
from tripod.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tripod.training.run import Run

_AT_MOST_LOSSES = 400  # points of a loss curve that are kept


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """Looks at each tensor of each checkpoint, and at what its layers make of some training rows."""

    name: ClassVar[str] = "model-statistics"
    version: ClassVar[int] = 1
    num_rows: int = 16  # training rows, the first of the run, that are read for activations; 0: weights only

    def __post_init__(self) -> None:
        if self.num_rows < 0:
            raise ConfigError(f"num_rows={self.num_rows}; give 0 for weights only, or a number of rows")

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        first = _first(checkpoint)
        return {
            "first": "" if first is None else first.hash,
            "order": checkpoint.run.order().content_fingerprint if checkpoint.run is not None and self.num_rows else "",
        }

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        """One statistic of one tensor or layer a row."""
        first = _first(checkpoint)
        rows = list(weight_rows(checkpoint.folder, None if first is None else first.folder))
        if checkpoint.run is not None and self.num_rows:
            order = checkpoint.run.order()
            tokens = np.stack([order.rows.row(row).astype(np.int64) for row in range(min(self.num_rows, order.rows.num_rows))])
            rows += activation_rows(checkpoint.folder, tokens, device=checkpoint.device)
        return Table.of(rows)

    def conclude(self, measured: Measured) -> Table:
        """What was measured, and beside it of each run `loss` and `loss spike` over its steps."""
        rows: list[Row] = [{**checkpoint.about(), **row} for checkpoint, table in measured for row in table]
        runs = {checkpoint.run.folder: checkpoint for checkpoint, _ in measured if checkpoint.run is not None}
        for checkpoint in runs.values():
            assert checkpoint.run is not None
            rows += [{**checkpoint.about(), "tokens": None, **row} for row in _losses(checkpoint.run)]
        return Table.of(rows)

    def draw(self, table: Table, figure: Figure) -> None:
        draw_statistics(table, figure)


def _first(checkpoint: Checkpoint) -> Checkpoint | None:
    """The beginning of the same run, where it was kept."""
    folder = checkpoint.folder.parent / "step0"
    is_there = checkpoint.step is not None and (folder / "config.json").is_file()
    return Checkpoint(checkpoint.name, Path(folder), 0, checkpoint.device) if is_there else None


def _losses(run: Run) -> Iterator[Row]:
    records = [record for record in read_metrics(run.metrics_path) if "loss" in record]  # before the first step there is none
    stride = -(-len(records) // _AT_MOST_LOSSES) or 1
    for number, record in enumerate(records):
        about = {"kind": "metric", "layer": None, "part": "loss", "step": record["step"]}
        if number % stride == 0 or number == len(records) - 1:
            yield {**about, "statistic": "loss", "value": record["loss"]}
        if record.get("is_spike"):
            yield {**about, "statistic": "loss spike", "value": record["loss"]}
