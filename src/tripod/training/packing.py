"""Several documents in one row: which tokens see which, and from where their positions count."""

# B rows, T inputs a row

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripod.errors import ConfigError
from tripod.ops.attention import Attend, DocumentAttention, causal_attention
from tripod.training.data.order import Rows
from tripod.training.recipe import BatchRecipe


@dataclass(frozen=True, slots=True)
class Packing:
    """What a model is told of rows besides their tokens."""

    positions: Tensor  # [B, T], int64
    starts: Tensor | None = None  # [B, T], int64: the column in which each token's document begins; None: one sequence a row

    @staticmethod
    def of_whole_rows(inputs: Tensor) -> Packing:
        """Each row [B, T] is one sequence, over the borders of its documents, as in GPT-NeoX."""
        return Packing(torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape))

    @property
    def attend(self) -> Attend:
        return causal_attention if self.starts is None else DocumentAttention(self.starts)

    def part(self, rows: slice) -> Packing:
        return Packing(self.positions[rows], None if self.starts is None else self.starts[rows])


def pack(rows: Rows, numbers: Sequence[int], batch: BatchRecipe, device: torch.device) -> Packing:
    """The packing of some rows of a run, as a recipe wants it.

    Raises:
        ConfigError: the recipe wants documents apart, and the rows do not say where theirs begin.
    """
    columns = torch.arange(batch.seq_length).expand(len(numbers), -1)
    if batch.attention == "row" and batch.positions == "row":
        return Packing(columns.to(device))
    starts = torch.stack([_starts(rows, row, batch.seq_length) for row in numbers])
    positions = columns if batch.positions == "row" else columns - starts
    return Packing(positions.to(device), starts.to(device) if batch.attention == "document" else None)


def _starts(rows: Rows, row: int, seq_length: int) -> Tensor:  # [T]
    starts = torch.zeros(seq_length, dtype=torch.int64)
    for span in rows.spans(row):
        if span.document is None and span.stop - span.start > seq_length:
            raise ConfigError(
                f"row {row} does not say where its documents begin (it is pre-shuffled); batch.attention and batch.positions must be 'row'"
            )
        starts[span.column :] = span.column
    return starts
