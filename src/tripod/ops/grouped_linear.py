"""Products of rows that are sorted by expert, each with the matrix of its own: the definition, in plain torch."""

# A rows, E experts, K inputs, N outputs

from __future__ import annotations

import torch
from torch import Tensor

from tripod.ops.shape import expect_shape


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """x W_e^T, with e the expert of the row.

    Args:
        x: [A, K]: the rows of expert 0, then those of expert 1, and so on.
        weight: [E, N, K].
        counts: [E], int64: rows of each expert; they sum to A.

    Returns:
        [A, N].

    Raises:
        ShapeError: the shapes do not fit each other.
    """
    num_experts, num_outputs, num_inputs = weight.shape
    expect_shape("x", x, (None, num_inputs))
    expect_shape("counts", counts, (num_experts,))
    rows = torch.split(x, counts.tolist())
    return torch.cat([part @ matrix.T for part, matrix in zip(rows, weight, strict=True) if len(part)] or [x.new_empty(0, num_outputs)])
