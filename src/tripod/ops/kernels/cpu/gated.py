"""What stands between the two products of an expert as it is trained; the reference is `tripod.ops.expert_mlp.gated`."""

# A rows, F size of an expert, R rows of its first matrix (2 F; 3 F with a double gate)

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tripod.ops.expert_mlp import Gating
from tripod.ops.kernels.cpu import threads
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor


class _CGates(ctypes.Structure):
    _fields_ = (
        ("num_rows", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("is_double", ctypes.c_int32),
        ("first", POINTER),
        ("factors", POINTER),
    )


_gated = KernelFunction("tripod_gated", POINTER, POINTER)
_gated_gradients = KernelFunction("tripod_gated_gradients", POINTER, POINTER, POINTER, POINTER)


def gated_rows(first: Tensor, factors: Tensor, gating: Gating) -> Tensor:
    """`tripod.ops.expert_mlp.gated`, each row times its factor: first [A, R], factors [A] -> [A, F]. All float32, contiguous; no gradients.

    Raises:
        ShapeError: the shapes do not fit each other, or there are gaps between elements.
        ConfigError: another dtype or device, or no kernels here.
    """
    gates = _gates(first, factors, gating)
    out = torch.empty(gates.num_rows, gates.size)
    _gated(ctypes.byref(gates), out.data_ptr())
    return out


def gated_rows_gradients_(of_hidden: Tensor, first: Tensor, factors: Tensor, gating: Gating) -> tuple[Tensor, Tensor]:
    """The gradients of first, [A, R], and of factors, [A]; see `gated_rows`.

    Args:
        of_hidden: [A, F], the gradient of what `gated_rows` gives, but for the factors. It becomes what `gated_rows` gives.
        first: of the forward pass.
        factors: likewise.
        gating: likewise.
    """
    gates = _gates(first, factors, gating)
    expect_tensor("of_hidden", of_hidden, (gates.num_rows, gates.size), (torch.float32,))
    of_first, of_factors = torch.empty_like(first), torch.empty_like(factors)
    _gated_gradients(ctypes.byref(gates), of_hidden.data_ptr(), of_first.data_ptr(), of_factors.data_ptr())
    return of_first, of_factors


def _gates(first: Tensor, factors: Tensor, gating: Gating) -> _CGates:
    parts = 2 if gating == "swiglu" else 3
    size = first.shape[-1] // parts
    expect_tensor("first", first, (None, parts * size), (torch.float32,))
    expect_tensor("factors", factors, (len(first),), (torch.float32,))
    threads.follow_torch()
    return _CGates(len(first), size, gating == "double", first.data_ptr(), factors.data_ptr())
