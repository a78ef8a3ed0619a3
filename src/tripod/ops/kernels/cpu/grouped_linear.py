"""Products of few rows, sorted by expert, each with its matrix where it lies: the fast twin of `tripod.ops.grouped_linear` in float32.

Their reference has gradients by torch; here the three products stand by themselves, for whoever has a backward pass of his own.
"""

# A rows, E experts, K inputs, N outputs

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tripod.errors import ShapeError
from tripod.ops.kernels.cpu import threads
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor

_INT64 = ctypes.c_int64


class _CGroups(ctypes.Structure):
    _fields_ = (("num_experts", _INT64), ("num_outputs", _INT64), ("num_inputs", _INT64), ("counts", POINTER))


_linear = KernelFunction("tripod_grouped_linear", POINTER, POINTER, POINTER, POINTER)
_of_x = KernelFunction("tripod_grouped_linear_of_x", POINTER, POINTER, POINTER, POINTER)
_of_weight = KernelFunction("tripod_grouped_linear_of_weights", POINTER, POINTER, POINTER, POINTER, ctypes.c_int32)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """See `tripod.ops.grouped_linear.grouped_linear`: x [A, K], weight [E, N, K], counts [E] -> [A, N]. All contiguous; no gradients.

    Raises:
        ShapeError: the shapes do not fit each other, or there are gaps between elements.
        ConfigError: another dtype or device, or no kernels here.
    """
    expect_tensor("x", x, (None, weight.shape[2]), (torch.float32,))
    y = torch.empty(len(x), weight.shape[1])
    _linear(ctypes.byref(_groups(weight, counts, len(x))), x.data_ptr(), weight.data_ptr(), y.data_ptr())
    return y


def gradient_of_x(of_y: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """[A, N] -> [A, K]; see `grouped_linear`."""
    expect_tensor("of_y", of_y, (None, weight.shape[1]), (torch.float32,))
    of_x = torch.empty(len(of_y), weight.shape[2])
    _of_x(ctypes.byref(_groups(weight, counts, len(of_y))), of_y.data_ptr(), weight.data_ptr(), of_x.data_ptr())
    return of_x


def write_gradient_of_weight(of_y: Tensor, x: Tensor, counts: Tensor, out: Tensor, *, adds: bool) -> None:
    """The gradients of the matrices that have rows, into out [E, N, K]: added to what is there, or in its place. See `grouped_linear`."""
    expect_tensor("x", x, (None, out.shape[2]), (torch.float32,))
    expect_tensor("of_y", of_y, (len(x), out.shape[1]), (torch.float32,))
    _of_weight(ctypes.byref(_groups(out, counts, len(x))), of_y.data_ptr(), x.data_ptr(), out.data_ptr(), adds)


def _groups(weight: Tensor, counts: Tensor, num_rows: int) -> _CGroups:
    expect_tensor("weight", weight, (None, None, None), (torch.float32,))
    expect_tensor("counts", counts, (len(weight),), (torch.int64,))
    if (total := int(counts.sum())) != num_rows:
        raise ShapeError(f"counts sum to {total}, and there are {num_rows} rows; give the rows of each expert")
    threads.follow_torch()
    return _CGroups(*weight.shape, counts.data_ptr())
