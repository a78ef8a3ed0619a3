"""Linear layers over packed weights: the fast twin of `tripod.ops.linear_formats`.

    packed = pack_linear(layer.weight, "int8")             # once; packed.data may be kept in a file
    y = linear(x, packed, layer.bias, activation="gelu_erf")   # any number of rows

A row's result has the same bits whatever the batch and the row's place in it, and whatever the number of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor
from tripod.ops.kernels.cpu.packing import PackedWeight, gate_up_bias, pack_gate_up, pack_linear
from tripod.ops.linear_formats import LinearActivation

__all__ = ["PackedWeight", "gate_up", "gate_up_bias", "linear", "linear_argmax", "pack_gate_up", "pack_linear"]

TYPES = {torch.float32: 0, torch.bfloat16: 1}
FORMATS = {"f32": 0, "bf16": 1, "int8": 2, "int4": 3}
ACTIVATIONS: dict[str | None, int] = {None: 0, "gelu_erf": 1, "gelu_tanh": 2, "silu": 3}
_SILU_MUL = 4

_linear = KernelFunction(
    "tripod_linear",
    *(ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, POINTER),  # format, group, outputs, inputs, panels
    *(POINTER, ctypes.c_int32, ctypes.c_int64),  # x, its type, rows
    *(POINTER, ctypes.c_int32, POINTER),  # bias, activation, residual
    *(POINTER, ctypes.c_int32, ctypes.c_int64),  # out, its type, columns
)

_linear_argmax = KernelFunction(
    "tripod_linear_argmax",
    *(ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, POINTER),  # format, group, outputs, inputs, panels
    *(POINTER, ctypes.c_int32, ctypes.c_int64),  # x, its type, rows
    *(ctypes.c_int64, POINTER, POINTER),  # columns, places, values
)


def linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    activation: LinearActivation | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + bias) + residual.

    Args:
        x: [..., K], float32 or bfloat16, contiguous; converted or quantised as the weight's format says.
        packed: from `pack_linear`.
        bias: [N], float32.
        activation: applied to the sum with the bias; None: none.
        residual: [..., N], of the type of the result, added last; may be `out` itself.
        out: [..., N], float32 or bfloat16, contiguous, where the result goes; by default new, of the type of x. Not x itself.

    Returns:
        [..., N]: out.

    Raises:
        ShapeError: a shape that does not fit, or a tensor with gaps.
        ConfigError: another type, a tensor on another device, a gate-and-up weight, an unknown activation, or no kernels here.
    """
    if packed.is_gate_up:
        raise ConfigError("the weight holds gate and up together, so it has no single product; call gate_up(x, packed)")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation={activation!r} is unknown; use one of {', '.join(str(name) for name in ACTIVATIONS)}")
    return _apply(x, packed, bias, ACTIVATIONS[activation], residual, out)


def gate_up(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """silu(x gate^T + its bias) * (x up^T + its bias).

    Args:
        x: [..., K], as in `linear`.
        packed: from `pack_gate_up`.
        bias: from `gate_up_bias`; None: none.
        out: [..., N], as in `linear`.

    Returns:
        [..., N]: out.

    Raises:
        ShapeError: as in `linear`.
        ConfigError: as in `linear`, or the weight is of a single layer.
    """
    if not packed.is_gate_up:
        raise ConfigError("the weight holds a single layer; pack the two with pack_gate_up(gate, up, ...)")
    return _apply(x, packed, bias, _SILU_MUL, None, out)


def linear_argmax(x: Tensor, packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """The largest of each row of x W^T, without the rows themselves: bit for bit what `linear` and then `argmax` give.

    Args:
        x: [R, K], as in `linear`.
        packed: from `pack_linear`.

    Returns:
        Its place, [R] int64, the first of equals, NaN counting as the largest; and the number itself, [R] float32.

    Raises:
        ShapeError: a shape that does not fit, or a tensor with gaps.
        ConfigError: another type, a tensor on another device, a gate-and-up weight, or no kernels here.
    """
    if packed.is_gate_up:
        raise ConfigError("the weight holds gate and up together, so it has no single product")
    num_outputs, num_inputs = packed.shape
    expect_tensor("x", x, (None, num_inputs), (torch.float32, torch.bfloat16))
    places, values = torch.empty(len(x), dtype=torch.int64), torch.empty(len(x))
    if len(x):
        _linear_argmax(
            *(FORMATS[packed.format], packed.group or 0, packed.padded_outputs, num_inputs, packed.data.data_ptr()),
            *(x.data_ptr(), TYPES[x.dtype], len(x), num_outputs, places.data_ptr(), values.data_ptr()),
        )
    return places, values


def _apply(x: Tensor, packed: PackedWeight, bias: Tensor | None, activation: int, residual: Tensor | None, out: Tensor | None) -> Tensor:
    num_outputs, num_inputs = packed.shape
    if not x.shape or x.shape[-1] != num_inputs:
        raise ShapeError(f"x has shape {list(x.shape)}; the weight of shape {list(packed.shape)} expects {num_inputs} in the last place")
    shape = (*x.shape[:-1], num_outputs)
    types = (torch.float32, torch.bfloat16)
    expect_tensor("x", x, tuple(x.shape), types)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype)
    else:
        expect_tensor("out", out, shape, types)
        if out.data_ptr() == x.data_ptr() and out.numel():
            raise ConfigError("out is x itself; the layer reads all of x for every column of out: give another tensor")
    if bias is not None:
        expect_tensor("bias", bias, (packed.padded_outputs if packed.is_gate_up else num_outputs,), (torch.float32,))
    if residual is not None:
        expect_tensor("residual", residual, shape, (out.dtype,))
    if x.numel() == 0:
        return out.zero_() if out.numel() else out
    _linear(
        *(FORMATS[packed.format], packed.group or 0, packed.padded_outputs, num_inputs, packed.data.data_ptr()),
        *(x.data_ptr(), TYPES[x.dtype], x.numel() // num_inputs),
        *(None if bias is None else bias.data_ptr(), activation, None if residual is None else residual.data_ptr()),
        *(out.data_ptr(), TYPES[out.dtype], num_outputs),
    )
    return out
