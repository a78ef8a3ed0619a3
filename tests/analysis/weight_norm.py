"""A study small enough to see through: the norm of a tensor at each checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure
from safetensors.torch import load_file

from tripod.analysis.checkpoints import Checkpoint
from tripod.analysis.study import Measured
from tripod.evaluation.table import Table
from tripod.training.data.progress import Progress


@dataclass(frozen=True)
class WeightNorm:
    name: ClassVar[str] = "weight-norm"
    version: ClassVar[int] = 1
    power: float = 2.0
    outside: str = ""

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        return {"outside": self.outside}

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        weights = load_file(checkpoint.folder / "model.safetensors")["embed_out.weight"]
        return Table.of([{"norm": float((weights.abs() ** self.power).sum())}])

    def conclude(self, measured: Measured) -> Table:
        return Table.of({**checkpoint.about(), **row} for checkpoint, table in measured for row in table)

    def draw(self, table: Table, figure: Figure) -> None:
        figure.subplots().plot(table.numbers("step"), table.numbers("norm"))
