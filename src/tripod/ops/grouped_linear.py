"""Products of rows that are sorted by expert, each with the matrix of its own: by torch's grouped product where there is one."""

# A rows, E experts, K inputs, N outputs

from __future__ import annotations

import torch
from torch import Tensor

from tripod.ops.shape import expect_shape

_ALIGNMENT = 16  # bytes: what the grouped product wants of each row
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}
_grouped_mm = getattr(torch.nn.functional, "grouped_mm", None)  # since torch 2.10


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
    if _grouped_mm is not None and has_grouped_product(x, weight):
        return _grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))  # type: ignore[no-any-return]
    rows = torch.split(x, counts.tolist())
    return torch.cat([part @ matrix.T for part, matrix in zip(rows, weight, strict=True) if len(part)] or [x.new_empty(0, num_outputs)])


def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """The sum over an expert's rows of the outer products of left and right: the gradient of its matrix. Where `has_grouped_product`.

    Args:
        left: [A, N].
        right: [A, K].
        ends: [E], int32: the row behind the last of each expert.

    Returns:
        [E, N, K].
    """
    assert _grouped_mm is not None, "the caller asks has_grouped_product first"
    return _grouped_mm(left.t(), right, offs=ends)  # type: ignore[no-any-return]


def has_grouped_product(x: Tensor, weight: Tensor) -> bool:
    """Whether torch has a grouped product for tensors such as these."""
    numbers = _ALIGNMENT // weight.element_size()
    return (
        _grouped_mm is not None
        and x.dtype == weight.dtype
        and weight.dtype in _DTYPES.get(weight.device.type, ())
        and len(x) > 0
        and not torch.is_autocast_enabled(x.device.type)
        and weight.shape[1] % numbers == 0
        and weight.shape[2] % numbers == 0
    )
