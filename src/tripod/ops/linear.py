"""What a linear layer is to its caller: weights made ready once, in a format, then applied to any number of rows.

The formats and what each computes are defined in `tripod.ops.linear_formats`.
"""

# N outputs, K inputs; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, get_args

from torch import Tensor

from tripod.errors import ConfigError
from tripod.ops.linear_formats import LinearFormat

WeightFormat: TypeAlias = Literal["f32", "bf16", "int8", "int4", "int4-64", "int4-128"]  # as a user names it: a format and its group
_PARTS: dict[WeightFormat, tuple[LinearFormat, int | None]] = {
    "f32": ("f32", None),
    "bf16": ("bf16", None),
    "int8": ("int8", None),
    "int4": ("int4", 32),
    "int4-64": ("int4", 64),
    "int4-128": ("int4", 128),
}
_BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4}


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


def parts_of(weight_format: str) -> tuple[LinearFormat, int | None]:
    """The format of that name, and in int4 the inputs under one scale.

    Raises:
        ConfigError: there is no such format.
    """
    if weight_format not in _PARTS:
        raise ConfigError(f"weight_format={weight_format!r} is unknown; use one of {', '.join(get_args(WeightFormat))}")
    return _PARTS[weight_format]


def weight_bytes(num_outputs: int, num_inputs: int, weight_format: WeightFormat) -> int:
    """Memory that a weight of [N, K] takes; a route that rounds N and K up takes a little more."""
    format, group = parts_of(weight_format)
    scales = 32 if format == "int8" else 0 if group is None else 16 * num_inputs / group
    return int(num_outputs * (num_inputs * _BITS[format] + scales) / 8)
