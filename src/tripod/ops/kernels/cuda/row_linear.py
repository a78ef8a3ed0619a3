"""Products of a single row with matrices, for NVIDIA GPUs in Triton, with what stands before and after them.

When one request decodes, a step is the reading of all weights, once: each program reads some rows of a matrix as fast as the memory gives
them, and neither the norm before the product nor the activation or addition after it is worth a launch of its own.
"""

# D inputs, N outputs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tripod.ops.kernels.cuda.rows import Activation, Norms, activated

ROWS = 2  # of a matrix, that a program reads at once after a norm
_MOST_GROUPS = 4  # of so many rows, one after the other
_ADDED_ROWS = 2  # and before an addition, where rows are longer
_COLUMNS = 1024  # at a time


@triton.jit  # type: ignore[untyped-decorator]
def _norm_linear(  # type: ignore[no-untyped-def]
    x, norm_weight, norm_bias, weight, bias, out, second_out, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, NUM_FIRST: tl.constexpr, NUM_OUT: tl.constexpr, BLOCK_N: tl.constexpr, GROUPS: tl.constexpr,
    IS_RMS: tl.constexpr, HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, IS_GATED: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(0) * (BLOCK_N * GROUPS)
    is_second = first_row >= NUM_FIRST
    norm = is_second.to(tl.int32) * D if NUM_FIRST > 0 else 0  # where its weights stand
    column = tl.arange(0, BLOCK_D)
    is_column = column < D
    row = first_row + tl.arange(0, BLOCK_N)
    place = weight + row.to(tl.int64)[:, None] * D + column[None, :]
    next_w = tl.load(place, mask=(row[:, None] < NUM_OUT) & is_column[None, :], other=0.0)  # on its way while the norm is found
    wide = tl.load(x + column, mask=is_column, other=0.0)
    if not IS_RMS:
        wide = tl.where(is_column, wide - tl.sum(wide, axis=0) / D, 0.0)
    normed = wide * (1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / D + eps))
    normed *= tl.load(norm_weight + norm + column, mask=is_column, other=0.0)
    if HAS_NORM_BIAS:
        normed += tl.load(norm_bias + norm + column, mask=is_column, other=0.0)
    for group in tl.static_range(GROUPS):
        row = first_row + group * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row = row < NUM_OUT
        w = next_w
        if group + 1 < GROUPS:
            is_next = row[:, None] + BLOCK_N < NUM_OUT
            next_w = tl.load(place + (group + 1) * BLOCK_N * D, mask=is_next & is_column[None, :], other=0.0)
        y = tl.sum(w.to(tl.float32) * normed[None, :], axis=1)
        if HAS_BIAS:
            y += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
        if is_second:
            y = activated(y, ACTIVATION)
            if IS_GATED:  # the rows so far were gates; what they let through stands NUM_OUT rows further on
                gated = tl.load(place + (group * BLOCK_N + NUM_OUT) * D, mask=is_row[:, None] & is_column[None, :], other=0.0)
                through = tl.sum(gated.to(tl.float32) * normed[None, :], axis=1)
                if HAS_BIAS:
                    through += tl.load(bias + NUM_OUT + row, mask=is_row, other=0.0).to(tl.float32)
                y *= through
            tl.store(second_out + row - NUM_FIRST, y.to(second_out.dtype.element_ty), mask=is_row)
        else:
            tl.store(out + row, y.to(out.dtype.element_ty), mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def _linear_add(  # type: ignore[no-untyped-def]
    stream, x, weight, bias, stride_weight,
    D: tl.constexpr, NUM_OUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = weight + row.to(tl.int64)[:, None] * stride_weight
    is_row = row[:, None] < NUM_OUT
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in tl.static_range(0, D, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        is_column = column < D
        w = tl.load(place + column[None, :], mask=is_row & is_column[None, :], other=0.0)
        total += w.to(tl.float32) * tl.load(x + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    y = tl.sum(total, axis=1)
    is_row = row < NUM_OUT
    if HAS_BIAS:
        y += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(stream + row, tl.load(stream + row, mask=is_row, other=0.0) + y, mask=is_row)


def norm_linear(
    x: Tensor,
    norms: Norms,
    weight: Tensor,
    bias: Tensor | None,
    plain_out: Tensor | None,
    active_out: Tensor | None,
    activation: Activation = "relu",
    *,
    is_gated: bool = False,
) -> None:
    """Products of a normed row: the first norm's go to `plain_out` as they are, the last norm's through an activation to `active_out`.

    Args:
        x: [1, D], float32.
        norms: two where there are two outputs, else one.
        weight: [N, D], contiguous; its first rows are for `plain_out`. Gated: [2 N, D], the gates first, for `active_out` alone.
        bias: of as many.
        plain_out: [1, N_1], contiguous; N_1 divides by `ROWS` where there are two outputs.
        active_out: [1, N_2], contiguous.
        is_gated: the activation of the gates is multiplied with the other half.
    """
    size = x.shape[1]
    num_first = 0 if plain_out is None else plain_out.shape[1]
    num_out = num_first + (0 if active_out is None else active_out.shape[1])
    block_d = triton.next_power_of_2(size)
    groups = _MOST_GROUPS
    while groups > 1 and num_first % (ROWS * groups):
        groups //= 2
    _norm_linear[(triton.cdiv(num_out, ROWS * groups),)](
        x, norms.weight, x if norms.bias is None else norms.bias, weight, x if bias is None else bias,
        x if plain_out is None else plain_out, x if active_out is None else active_out, norms.eps,
        D=size, BLOCK_D=block_d, NUM_FIRST=num_first, NUM_OUT=num_out, BLOCK_N=ROWS, GROUPS=groups,
        IS_RMS=norms.is_rms, HAS_NORM_BIAS=norms.bias is not None, HAS_BIAS=bias is not None, ACTIVATION=activation, IS_GATED=is_gated,
        num_warps=max(1, min(16, block_d // 512)),
    )  # fmt: skip


def linear_add(stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """stream += x W^T + bias.

    Args:
        stream: [1, N], float32.
        x: [1, D], contiguous.
        weight: [N, D], rows contiguous.
        bias: [N].
    """
    num_out, size = weight.shape
    _linear_add[(triton.cdiv(num_out, _ADDED_ROWS),)](
        stream, x, weight, stream if bias is None else bias, weight.stride(0),
        D=size, NUM_OUT=num_out, BLOCK_N=_ADDED_ROWS, BLOCK_K=min(_COLUMNS, triton.next_power_of_2(size)), HAS_BIAS=bias is not None,
    )  # fmt: skip
