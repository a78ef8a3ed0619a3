"""Cross-entropy and its gradient in place; the reference is `tripod.ops.cross_entropy`."""

# N tokens, V vocabulary

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor

_cross_entropy = KernelFunction(
    *("tripod_cross_entropy", POINTER, ctypes.c_int, POINTER, POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_float, ctypes.c_int)
)
_accumulate_bf16 = KernelFunction("tripod_accumulate_bf16", POINTER, POINTER, ctypes.c_int64)


def cross_entropy_(logits: Tensor, targets: Tensor, factor: float, *, wants_gradient: bool = True) -> Tensor:
    """See `tripod.ops.cross_entropy.cross_entropy_`; logits float32 or bfloat16, contiguous. Targets are not checked."""
    expect_tensor("logits", logits, (None, None), (torch.float32, torch.bfloat16))
    expect_tensor("targets", targets, (logits.shape[0],), (torch.int64,))
    losses = torch.empty(len(targets), dtype=torch.float32)
    is_bf16 = logits.dtype == torch.bfloat16
    _cross_entropy(logits.data_ptr(), is_bf16, targets.data_ptr(), losses.data_ptr(), *logits.shape, factor, wants_gradient)
    return losses


def accumulate_bf16_(sums: Tensor, parts: Tensor) -> None:
    """sums += parts, without a float32 copy of parts: sums [...] float32, parts [...] bfloat16, both contiguous."""
    expect_tensor("sums", sums, tuple(sums.shape), (torch.float32,))
    expect_tensor("parts", parts, tuple(sums.shape), (torch.bfloat16,))
    _accumulate_bf16(sums.data_ptr(), parts.data_ptr(), sums.numel())
