"""What a step does to rows between its products, for NVIDIA GPUs in Triton: additions to the stream and norms, and activations.

The stream that runs through the layers is float32 whatever the weights are. A launch on a GPU costs about as much as reading a row a
hundred times, so one kernel adds what the last product gave, keeps the sum, and makes every norm of it that is wanted.
"""

# N rows, D hidden size, F feed-forward size, S norms of one stream

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

Activation: TypeAlias = Literal["gelu_erf", "gelu_tanh", "silu", "relu"]


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms of the same rows, with weights of their own: LayerNorms, or RMSNorms."""

    weight: Tensor  # [S, D], float32
    bias: Tensor | None  # [S, D], float32
    eps: float
    is_rms: bool


@triton.jit  # type: ignore[untyped-decorator]
def activated(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation of float32 numbers, in a kernel."""
    if ACTIVATION == "gelu_erf":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":  # (1 + tanh u) / 2 is the logistic function of 2 u
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]
    x, product, bias, norm_weight, norm_bias, out, num_rows, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, NUM_NORMS: tl.constexpr, IS_RMS: tl.constexpr, HAS_PRODUCT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM_BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    mask = column < D
    wide = tl.load(x + row * D + column, mask=mask, other=0.0)
    if HAS_PRODUCT:
        wide += tl.load(product + row * D + column, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            wide += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(x + row * D + column, wide, mask=mask)
    if not IS_RMS:
        wide = tl.where(mask, wide - tl.sum(wide, axis=0) / D, 0.0)
    wide = wide / tl.sqrt(tl.sum(wide * wide, axis=0) / D + eps)
    for norm in tl.static_range(NUM_NORMS):
        normed = wide * tl.load(norm_weight + norm * D + column, mask=mask, other=0.0)
        if HAS_NORM_BIAS:
            normed += tl.load(norm_bias + norm * D + column, mask=mask, other=0.0)
        tl.store(out + (norm * num_rows + row) * D + column, normed.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _activate(x, out, stride_x, stride_out, F, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, IS_GATED: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < F
    y = activated(tl.load(x + row * stride_x + column, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    if IS_GATED:
        y *= tl.load(x + row * stride_x + F + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * stride_out + column, y.to(out.dtype.element_ty), mask=mask)


def add_norm(x: Tensor, norms: Norms, dtype: torch.dtype, product: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Add `product + bias` to x, in place, and return all norms of the sum.

    Args:
        x: [N, D], float32, contiguous.
        norms: S of them.
        dtype: of the result.
        product: [N, D], contiguous, of any floating dtype; None adds nothing.
        bias: [D].

    Returns:
        [S, N, D].
    """
    num_rows, size = x.shape
    out = torch.empty(len(norms.weight), num_rows, size, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(size)
    _add_norm[(num_rows,)](
        x, x if product is None else product, x if bias is None else bias, norms.weight, x if norms.bias is None else norms.bias, out,
        num_rows, norms.eps,
        D=size, BLOCK_D=block, NUM_NORMS=len(norms.weight), IS_RMS=norms.is_rms, HAS_PRODUCT=product is not None,
        HAS_BIAS=bias is not None, HAS_NORM_BIAS=norms.bias is not None, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out


def activate(x: Tensor, activation: Activation, out: Tensor, *, is_gated: bool) -> None:
    """activation(x) into `out`; gated, the product of the first half's activation with the second half.

    Args:
        x: [N, F], gated [N, 2 F]; rows contiguous.
        out: [N, F], rows contiguous.
    """
    num_rows, size = out.shape
    block = min(1024, triton.next_power_of_2(size))
    _activate[(num_rows, triton.cdiv(size, block))](
        x, out, x.stride(0), out.stride(0), size, BLOCK=block, ACTIVATION=activation, IS_GATED=is_gated
    )
