"""What a linear layer is to its caller: weights made ready once, in a format, then applied to any number of rows.

The formats and what each computes are defined in `tripod.ops.linear_formats`.
"""

# N outputs, K inputs; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

from tripod.ops.linear_formats import LinearFormat

INT4_GROUP = 32  # inputs under one scale
_BITS = {"f32": 32.0, "bf16": 16.0, "int8": 8.0, "int4": 4.0 + 16 / INT4_GROUP}


class PackedLinear(Protocol):
    """A linear layer, ready to be applied."""

    @property
    def num_bytes(self) -> int:
        """Memory that its weight takes."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T + bias: [..., K] -> [..., N] in the dtype of x."""
        ...


PackLinear: TypeAlias = Callable[[Tensor, Tensor | None], PackedLinear]  # (weight [N, K], bias [N] or None)


def weight_bytes(num_outputs: int, num_inputs: int, weight_format: LinearFormat) -> int:
    """Memory that a weight of [N, K] takes; a route that rounds N and K up takes a little more."""
    scales = 32 if weight_format == "int8" else 0
    return int(num_outputs * (num_inputs * _BITS[weight_format] + scales) / 8)
