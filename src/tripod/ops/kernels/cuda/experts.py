"""Rows through their experts for NVIDIA GPUs, in Triton, with a backward pass of its own: the twin of `tripod.ops.expert_mlp`.

Assignments are sorted by expert in one launch, stably, and nothing waits for the processor to learn how many rows an expert got: products
are launched over as many tiles as there can be, and each finds its expert among the counts. They take rows from where the tokens lie and
put results where the token's choices are added up, so no row is copied only to be moved.

    x [N, D] --up--> first [A, R], gated [A, F] --down--> outputs [N, k, D] --sum--> [N, D]
       token's rows       in the order of experts            by token and choice
"""

# N tokens, k choices, A = N k assignments, E experts, D hidden size, F size of an expert, R rows of its first matrix (2 F or 3 F)

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from tripod.ops.expert_mlp import Gating
from tripod.ops.grouped_linear import grouped_outer, has_grouped_product
from tripod.ops.moe_routing import RouterConfig, Routing
from tripod.ops.shape import expect_shape

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before triton 3.4
    TensorDescriptor = None

MANY_ROWS = 128  # an expert, on average
TALL_ROWS = 64  # likewise: from there on products are made in tall tiles, where they can be
_SORTED = 8192  # assignments that are looked at together, at most
_VARYING = ["num_assignments"]  # from step to step: no kernel is compiled for one value


@dataclass(frozen=True, slots=True)
class _Order:
    """The assignments by expert: those of e are places[starts[e]:starts[e + 1]]. A single token's stay as they are, a tile each."""

    places: Tensor  # [A], int32: where in the flattened [N, k]; the last ones, which are dropped, say nothing
    starts: Tensor  # [E + 1], int32; of a single token, its experts: [A], int64
    is_whole: bool  # nothing is dropped
    is_single: bool = False


@dataclass(frozen=True, slots=True)
class _Tile:
    """What one program computes of a product."""

    rows: int
    columns: int
    inputs: int  # at a time
    warps: int
    stages: int


_TALL = _Tile(128, 256, 64, 8, 4)  # all that registers and shared memory hold: a number that is read is used the most often


def expert_mlp(x: Tensor, routing: Routing, up: Tensor, down: Tensor, gating: Gating) -> Tensor:
    """See `tripod.ops.expert_mlp.expert_mlp`. Products are added in float32.

    Args:
        x: bfloat16, float16 or float32.
        routing: of its rows.
        up: in the dtype of x; so is down.
        down: see there.
        gating: see there.
    """
    if not len(x):
        return x + 0.0 * (up.sum() + down.sum())  # so that all have a gradient, as elsewhere
    up, down = up.contiguous(), down.contiguous()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return _expert_mlp(x, routing, up, down, gating)


def _expert_mlp(x: Tensor, routing: Routing, up: Tensor, down: Tensor, gating: Gating) -> Tensor:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, routing.weights, up, down)):
        return _ExpertMLP.apply(x, routing.weights, up, down, routing.expert_ids, routing.is_kept, gating)  # type: ignore[no-any-return, no-untyped-call]
    x, weights = x.contiguous(), routing.weights.contiguous()
    order = _sort(routing.expert_ids, routing.is_kept, len(up), may_stay=True)
    top_k = weights.shape[1]
    _, hidden = _up(x, up, order, gating, top_k, keeps=False)
    return _sum_choices(_product(hidden, down, order, top_k), top_k, weights, routing.is_kept)


def route(logits: Tensor, config: RouterConfig, selection_bias: Tensor | None = None) -> Routing:
    """The twin of `tripod.ops.moe_routing.choose_experts` where tokens choose and nothing is dropped; the first of equals is chosen.

    It has no gradient.

    Args:
        logits: [N, E], contiguous.
        config: of the router.
        selection_bias: [E].

    Raises:
        ShapeError: the logits are not [N, E], or the bias not [E].
    """
    expect_shape("logits", logits, (None, config.num_experts))
    if selection_bias is not None:
        expect_shape("selection_bias", selection_bias, (config.num_experts,))
    num_tokens, num_experts = logits.shape
    gates = torch.empty(num_tokens, num_experts, device=logits.device)
    kept = logits if logits.dtype == torch.float32 else torch.empty_like(gates)
    expert_ids = torch.empty(num_tokens, config.top_k, dtype=torch.int64, device=logits.device)
    weights = torch.empty(num_tokens, config.top_k, device=logits.device)
    if num_tokens:
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            _route_kernel[(num_tokens,)](
                logits, kept, gates, expert_ids, weights, logits if selection_bias is None else selection_bias, config.scale,
                E=num_experts, BLOCK_E=triton.next_power_of_2(num_experts), TOP_K=config.top_k,
                BLOCK_C=triton.next_power_of_2(config.top_k), IS_SIGMOID=config.gate == "sigmoid", IS_NORMALIZED=config.is_normalized,
                HAS_BIAS=selection_bias is not None, KEEPS=kept is not logits, num_warps=1,
            )  # fmt: skip
    return Routing(kept, gates, expert_ids, weights)


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, is_kept: Tensor | None, gating: Gating
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        order = _sort(expert_ids, is_kept, len(up))
        top_k = weights.shape[1]
        first, hidden = _up(x, up, order, gating, top_k, keeps=True)
        ctx.save_for_backward(x, weights, up, down, first, order.places, order.starts, is_kept)
        ctx.gating = gating
        return _sum_choices(_product(hidden, down, order, top_k), top_k, weights, is_kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, first, places, starts, is_kept = ctx.saved_tensors
        order, of_out = _Order(places, starts, is_whole=is_kept is None), gradients[0].contiguous()
        top_k = weights.shape[1]
        of_hidden = _product(of_out, down, order, top_k, transposed=True, gathers=True)  # of outputs before their weights
        of_first, scaled, of_weights = _of_first(of_hidden, first, weights, order, ctx.gating)
        of_x = _sum_choices(_product(of_first, up, order, top_k, transposed=True), top_k, None, is_kept)
        _, _, wants_up, wants_down, *_ = ctx.needs_input_grad
        of_up = _of_matrices(of_first, x, up, order, top_k, gathered="right") if wants_up else None
        of_down = _of_matrices(of_out, scaled, down, order, top_k, gathered="left") if wants_down else None
        return of_x, of_weights, of_up, of_down, None, None, None


@triton.jit(do_not_specialize=["scale"])  # type: ignore[untyped-decorator]
def _route_kernel(  # type: ignore[no-untyped-def]
    logits, kept, gates, expert_ids, weights, bias, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, TOP_K: tl.constexpr, BLOCK_C: tl.constexpr, IS_SIGMOID: tl.constexpr,
    IS_NORMALIZED: tl.constexpr, HAS_BIAS: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK_E)
    is_expert = expert < E
    logit = tl.load(logits + token * E + expert, mask=is_expert, other=float("-inf")).to(tl.float32)
    if KEEPS:
        tl.store(kept + token * E + expert, logit, mask=is_expert)
    if IS_SIGMOID:
        gate = tl.sigmoid(logit)
    else:
        power = tl.exp(logit - tl.max(logit, axis=0))
        gate = power / tl.sum(power, axis=0)
    tl.store(gates + token * E + expert, gate, mask=is_expert)
    preferred = gate
    if HAS_BIAS:
        preferred += tl.load(bias + expert, mask=is_expert, other=0.0)
    preferred = tl.where(is_expert, preferred, float("-inf"))
    choice = tl.arange(0, BLOCK_C)
    chosen = tl.zeros([BLOCK_C], tl.int32)
    weight = tl.zeros([BLOCK_C], tl.float32)
    for number in tl.static_range(TOP_K):
        best = tl.argmax(preferred, axis=0)
        chosen = tl.where(choice == number, best, chosen)
        weight = tl.where(choice == number, tl.sum(tl.where(expert == best, gate, 0.0), axis=0), weight)
        preferred = tl.where(expert == best, float("-inf"), preferred)
    if IS_NORMALIZED:
        weight = weight / tl.sum(weight, axis=0)
    is_choice = choice < TOP_K
    tl.store(expert_ids + token * TOP_K + choice, chosen.to(tl.int64), mask=is_choice)
    tl.store(weights + token * TOP_K + choice, weight * scale, mask=is_choice)


@triton.jit(do_not_specialize=_VARYING)  # type: ignore[untyped-decorator]
def _sort_kernel(  # type: ignore[no-untyped-def]
    ids, is_kept, places, starts, num_assignments, HAS_KEPT: tl.constexpr, NUM_EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program for each expert: how many assignments come before its own, and where those are."""
    expert = tl.program_id(0)
    before = tl.zeros([BLOCK], tl.int32)
    own = tl.zeros([BLOCK], tl.int32)
    for at in range(0, num_assignments, BLOCK):
        place = at + tl.arange(0, BLOCK)
        mask = place < num_assignments
        if HAS_KEPT:
            mask = mask & (tl.load(is_kept + place, mask=mask, other=0) != 0)
        chosen = tl.load(ids + place, mask=mask, other=NUM_EXPERTS)
        before += (chosen < expert).to(tl.int32)
        own += (chosen == expert).to(tl.int32)
    next_place = tl.sum(before, axis=0)
    tl.store(starts + expert, next_place)
    if expert == NUM_EXPERTS - 1:
        tl.store(starts + NUM_EXPERTS, next_place + tl.sum(own, axis=0))
    for at in range(0, num_assignments, BLOCK):
        place = at + tl.arange(0, BLOCK)
        mask = place < num_assignments
        if HAS_KEPT:
            mask = mask & (tl.load(is_kept + place, mask=mask, other=0) != 0)
        is_own = tl.load(ids + place, mask=mask, other=NUM_EXPERTS) == expert
        rank = tl.cumsum(is_own.to(tl.int32), axis=0)
        tl.store(places + next_place + rank - 1, place, mask=is_own)
        next_place += tl.sum(is_own.to(tl.int32), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of_tile(  # type: ignore[no-untyped-def]
    starts, tile, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, IS_SINGLE: tl.constexpr,
):  # fmt: skip
    """(expert, first row, row behind its last) of the tile; expert E where there are fewer tiles."""
    if IS_SINGLE:
        expert = tl.load(starts + tile).to(tl.int32)
        first = tile
        last = tile + 1
    else:
        number = tl.arange(0, BLOCK_E)
        is_expert = number < E
        start = tl.load(starts + number, mask=is_expert, other=0)
        end = tl.load(starts + number + 1, mask=is_expert, other=0)
        num_tiles = tl.where(is_expert, (end - start + BLOCK_M - 1) // BLOCK_M, 0)
        tiles_up_to = tl.cumsum(num_tiles, axis=0)
        expert = tl.sum((is_expert & (tiles_up_to <= tile)).to(tl.int32), axis=0)
        is_own = number == expert
        first = tl.sum(tl.where(is_own, start + (tile - tiles_up_to + num_tiles) * BLOCK_M, 0), axis=0)
        last = tl.sum(tl.where(is_own, end, 0), axis=0)
    return expert, first, last


@triton.jit  # type: ignore[untyped-decorator]
def _tile_of_program(num_tiles, num_columns, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """(tile, column): programs that run together share rows and weights."""
    program = tl.program_id(0)
    in_group = GROUP * num_columns
    first = program // in_group * GROUP
    size = tl.minimum(num_tiles - first, GROUP)
    return first + program % in_group % size, program % in_group // size


@triton.jit(do_not_specialize=["num_tiles"])  # type: ignore[untyped-decorator]
def _up_kernel(  # type: ignore[no-untyped-def]
    x, weight, first, hidden, places, starts, num_tiles,
    E: tl.constexpr, BLOCK_E: tl.constexpr, IS_SINGLE: tl.constexpr, D: tl.constexpr, F: tl.constexpr, TOP_K: tl.constexpr,
    IS_DOUBLE: tl.constexpr, KEEPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, column = _tile_of_program(num_tiles, tl.cdiv(F, BLOCK_N), GROUP)
    expert, first_row, end = _rows_of_tile(starts, tile, E, BLOCK_E, BLOCK_M, IS_SINGLE)
    if expert < E:
        row = first_row + tl.arange(0, BLOCK_M)
        is_row = row < end
        place = tl.where(is_row, row, 0) if IS_SINGLE else tl.load(places + row, mask=is_row, other=0)
        token = (place // TOP_K).to(tl.int64)
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        is_n = n < F
        k = tl.arange(0, BLOCK_K)
        R: tl.constexpr = 3 * F if IS_DOUBLE else 2 * F
        left = x + token[:, None] * D + k[None, :]
        right = weight + expert.to(tl.int64) * R * D + tl.where(is_n, n, 0)[None, :] * D + k[:, None]
        one = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        two = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        three = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for at in range(0, D, BLOCK_K):
            if D % BLOCK_K == 0:
                rows = tl.load(left + at)
                one = tl.dot(rows, tl.load(right + at), one, input_precision=PRECISION)
                two = tl.dot(rows, tl.load(right + at + F * D), two, input_precision=PRECISION)
                if IS_DOUBLE:
                    three = tl.dot(rows, tl.load(right + at + 2 * F * D), three, input_precision=PRECISION)
            else:
                is_k = at + k < D
                rows = tl.load(left + at, mask=is_k[None, :], other=0.0)
                one = tl.dot(rows, tl.load(right + at, mask=is_k[:, None], other=0.0), one, input_precision=PRECISION)
                two = tl.dot(rows, tl.load(right + at + F * D, mask=is_k[:, None], other=0.0), two, input_precision=PRECISION)
                if IS_DOUBLE:
                    three = tl.dot(rows, tl.load(right + at + 2 * F * D, mask=is_k[:, None], other=0.0), three, input_precision=PRECISION)
        mask = is_row[:, None] & is_n[None, :]
        if KEEPS:
            kept = first + row.to(tl.int64)[:, None] * R + n[None, :]
            tl.store(kept, one.to(first.dtype.element_ty), mask=mask)
            tl.store(kept + F, two.to(first.dtype.element_ty), mask=mask)
            if IS_DOUBLE:
                tl.store(kept + 2 * F, three.to(first.dtype.element_ty), mask=mask)
        if IS_DOUBLE:
            made = one * (two * tl.sigmoid(two)) * three
        else:
            made = one * tl.sigmoid(one) * two
        tl.store(hidden + row.to(tl.int64)[:, None] * F + n[None, :], made.to(hidden.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tiles"])  # type: ignore[untyped-decorator]
def _product_kernel(  # type: ignore[no-untyped-def]
    x, weight, out, places, starts, num_tiles, stride_k,
    E: tl.constexpr, BLOCK_E: tl.constexpr, IS_SINGLE: tl.constexpr, K: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr,
    IS_TRANSPOSED: tl.constexpr, GATHERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, column = _tile_of_program(num_tiles, tl.cdiv(N, BLOCK_N), GROUP)
    expert, first_row, end = _rows_of_tile(starts, tile, E, BLOCK_E, BLOCK_M, IS_SINGLE)
    if expert < E:
        row = first_row + tl.arange(0, BLOCK_M)
        is_row = row < end
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        is_n = n < N
        k = tl.arange(0, BLOCK_K)
        row = tl.where(is_row, row, first_row)
        place = row if IS_SINGLE else tl.load(places + row)
        left = x + (place // TOP_K if GATHERS else row).to(tl.int64)[:, None] * K + k[None, :]
        right = weight + expert.to(tl.int64) * K * N + (k[:, None] * N + n[None, :] if IS_TRANSPOSED else n[None, :] * K + k[:, None])
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for at in range(0, K, BLOCK_K):
            if K % BLOCK_K == 0 and N % BLOCK_N == 0:
                total = tl.dot(tl.load(left + at), tl.load(right + at * stride_k), total, input_precision=PRECISION)
            else:
                is_k = at + k < K
                rows = tl.load(left + at, mask=is_k[None, :], other=0.0)
                matrix = tl.load(right + at * stride_k, mask=is_k[:, None] & is_n[None, :], other=0.0)
                total = tl.dot(rows, matrix, total, input_precision=PRECISION)
        goal = (row if GATHERS else place).to(tl.int64)[:, None] * N + n[None, :]
        tl.store(out + goal, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_n[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _tall_tile(  # type: ignore[no-untyped-def]
    x, weight, first, out, places, expert, first_row, end, column,
    K: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr, IS_GATED: tl.constexpr, KEEPS: tl.constexpr, IS_TRANSPOSED: tl.constexpr,
    GATHERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = first_row + tl.arange(0, BLOCK_M)
    is_row = row < end
    row = tl.where(is_row, row, first_row)
    place = tl.load(places + row)
    left = x + (place // TOP_K if GATHERS else row).to(tl.int64)[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for at in range(0, K, BLOCK_K):
        if IS_GATED:  # rows of the gate, then as many of up: one product for both
            matrix = weight.load([expert, 0, column * (BLOCK_N // 2), at]).reshape(BLOCK_N, BLOCK_K).T
        elif IS_TRANSPOSED:
            matrix = weight.load([expert, at, column * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
        else:
            matrix = weight.load([expert, column * BLOCK_N, at]).reshape(BLOCK_N, BLOCK_K).T
        total = tl.dot(tl.load(left + at), matrix, total)
    if IS_GATED:
        n = column * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        mask = is_row[:, None] & (n < N)[None, :]
        one, two = tl.split(total.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1))
        if KEEPS:
            kept = first + row.to(tl.int64)[:, None] * (2 * N) + n[None, :]
            tl.store(kept, one.to(first.dtype.element_ty), mask=mask)
            tl.store(kept + N, two.to(first.dtype.element_ty), mask=mask)
        total = one * tl.sigmoid(one) * two
    else:
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = is_row[:, None] & (n < N)[None, :]
    goal = (row if GATHERS else place).to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out + goal, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tiles"])  # type: ignore[untyped-decorator]
def _tall_kernel(  # type: ignore[no-untyped-def]
    x, weight, first, out, places, starts, num_tiles,
    E: tl.constexpr, BLOCK_E: tl.constexpr, K: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr, IS_GATED: tl.constexpr,
    KEEPS: tl.constexpr, IS_TRANSPOSED: tl.constexpr, GATHERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Products where experts have many rows: Hopper's copy engine brings the matrices, and an expert's last tile may be half as tall."""
    tile, column = _tile_of_program(num_tiles, tl.cdiv(2 * N if IS_GATED else N, BLOCK_N), GROUP)
    # An expert's tiles are numbered from starts // BLOCK_M + expert on: no more can be before, so that nobody has to count them.
    number = tl.arange(0, BLOCK_E)
    before = tl.load(starts + number, mask=number < E, other=0) // BLOCK_M + number
    expert = tl.sum(((before <= tile) & (number < E)).to(tl.int32), axis=0) - 1
    start, end = tl.load(starts + expert), tl.load(starts + expert + 1)
    row = start + (tile - start // BLOCK_M - expert) * BLOCK_M
    if end - row > BLOCK_M // 2:
        _tall_tile(
            x, weight, first, out, places, expert, row, end, column,
            K, N, TOP_K, IS_GATED, KEEPS, IS_TRANSPOSED, GATHERS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif row < end:
        _tall_tile(
            x, weight, first, out, places, expert, row, end, column,
            K, N, TOP_K, IS_GATED, KEEPS, IS_TRANSPOSED, GATHERS, BLOCK_M // 2, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(  # type: ignore[no-untyped-def]
    outputs, weights, is_kept, out,
    D: tl.constexpr, TOP_K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < D
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP_K):
        place = token * TOP_K + choice
        own = mask
        if HAS_KEPT:  # where not, nothing was written
            own = mask & (tl.load(is_kept + place + 0 * column, mask=mask, other=0) != 0)
        term = tl.load(outputs + place * D + column, mask=own, other=0.0).to(tl.float32)
        if HAS_WEIGHTS:
            term *= tl.load(weights + place).to(tl.float32)
        total += term
    tl.store(out + token * D + column, total.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _of_first_kernel(  # type: ignore[no-untyped-def]
    of_hidden, first, weights, of_first, scaled, of_weights, places, starts,
    E: tl.constexpr, F: tl.constexpr, IS_DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(starts + E):
        place = tl.load(places + row)
        factor = tl.load(weights + place).to(tl.float32)
        R: tl.constexpr = 3 * F if IS_DOUBLE else 2 * F
        kind = of_first.dtype.element_ty
        product = tl.zeros([BLOCK], tl.float32)
        for at in range(0, F, BLOCK):
            n = at + tl.arange(0, BLOCK)
            mask = n < F
            entry = row * R + n
            one = tl.load(first + entry, mask=mask, other=0.0).to(tl.float32)
            two = tl.load(first + entry + F, mask=mask, other=0.0).to(tl.float32)
            of_made = tl.load(of_hidden + row * F + n, mask=mask, other=0.0).to(tl.float32)
            of_product = of_made * factor
            gate = two if IS_DOUBLE else one
            through = tl.sigmoid(gate)
            active = gate * through
            slope = through * (1.0 + gate * (1.0 - through))  # of silu
            if IS_DOUBLE:
                three = tl.load(first + entry + 2 * F, mask=mask, other=0.0).to(tl.float32)
                made = one * active * three
                tl.store(of_first + entry, (of_product * active * three).to(kind), mask=mask)
                tl.store(of_first + entry + F, (of_product * one * three * slope).to(kind), mask=mask)
                tl.store(of_first + entry + 2 * F, (of_product * one * active).to(kind), mask=mask)
            else:
                made = active * two
                tl.store(of_first + entry, (of_product * two * slope).to(kind), mask=mask)
                tl.store(of_first + entry + F, (of_product * active).to(kind), mask=mask)
            tl.store(scaled + row * F + n, (made * factor).to(kind), mask=mask)
            product += made * of_made
        tl.store(of_weights + place, tl.sum(product, axis=0).to(of_weights.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _of_matrices_kernel(  # type: ignore[no-untyped-def]
    left, right, out, places, starts,
    M: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr, IS_LEFT_GATHERED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    down, across = _tile_of_program(tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    expert = tl.program_id(1)
    m = down * BLOCK_M + tl.arange(0, BLOCK_M)
    n = across * BLOCK_N + tl.arange(0, BLOCK_N)
    start, end = tl.load(starts + expert), tl.load(starts + expert + 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for at in range(start, end, BLOCK_K):
        row = at + tl.arange(0, BLOCK_K)
        is_row = row < end
        token = (tl.load(places + row, mask=is_row, other=0) // TOP_K).to(tl.int64)
        left_row = token if IS_LEFT_GATHERED else row.to(tl.int64)
        right_row = row.to(tl.int64) if IS_LEFT_GATHERED else token
        a = tl.load(left + left_row[None, :] * M + m[:, None], mask=is_row[None, :] & (m < M)[:, None], other=0.0)
        b = tl.load(right + right_row[:, None] * N + n[None, :], mask=is_row[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    place = out + expert.to(tl.int64) * M * N + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def _sort(expert_ids: Tensor, is_kept: Tensor | None, num_experts: int, *, may_stay: bool = False) -> _Order:
    ids = expert_ids.flatten()
    if may_stay and is_kept is None and len(expert_ids) == 1:
        return _Order(ids, ids, is_whole=True, is_single=True)
    places = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=ids.device)
    block = min(_SORTED, max(32, triton.next_power_of_2(ids.numel())))
    _sort_kernel[(num_experts,)](
        ids, ids if is_kept is None else _as_bytes(is_kept), places, starts, ids.numel(),
        HAS_KEPT=is_kept is not None, NUM_EXPERTS=num_experts, BLOCK=block, num_warps=4 if block <= 1024 else 8,
    )  # fmt: skip
    return _Order(places, starts, is_whole=is_kept is None)


def _up(x: Tensor, up: Tensor, order: _Order, gating: Gating, top_k: int, *, keeps: bool) -> tuple[Tensor, Tensor]:
    """([A, R] or nothing, [A, F]): the first products and what the gates make of them, in the order of experts."""
    num_experts, num_rows, _ = up.shape
    num_assignments, is_double = len(order.places), gating == "double"
    size = num_rows // (3 if is_double else 2)
    hidden = x.new_empty(num_assignments, size)
    first = x.new_empty(num_assignments, num_rows) if keeps else hidden
    if not is_double and _is_tall(up, order):
        _tall_product(x, up.view(num_experts, 2, size, -1), first, hidden, order, top_k, keeps=keeps, gathers=True)
        return first, hidden
    tile = _tile(num_assignments, num_experts, size, x.dtype, matrices=3 if is_double else 2)
    tiles = _num_tiles(num_assignments, num_experts, tile)
    _up_kernel[(tiles * triton.cdiv(size, tile.columns),)](
        x, up, first, hidden, order.places, order.starts, tiles,
        **_sizes(num_experts, tile, x.dtype, order), D=x.shape[1], F=size, TOP_K=top_k, IS_DOUBLE=is_double, KEEPS=keeps,
    )  # fmt: skip
    return first, hidden


def _product(x: Tensor, weight: Tensor, order: _Order, top_k: int, *, transposed: bool = False, gathers: bool = False) -> Tensor:
    """x W_e^T, transposed x W_e: from the order of experts to [A, N] by token and choice; where it gathers, from tokens to that order."""
    num_experts, num_out, num_in = weight.shape
    if transposed:
        num_out, num_in = num_in, num_out
    num_assignments = len(order.places)
    out = x.new_empty(num_assignments, num_out)
    if _is_tall(weight, order):
        _tall_product(x, weight, out, out, order, top_k, transposed=transposed, gathers=gathers)
        return out
    tile = _tile(num_assignments, num_experts, num_out, x.dtype)
    tiles = _num_tiles(num_assignments, num_experts, tile)
    _product_kernel[(tiles * triton.cdiv(num_out, tile.columns),)](
        x, weight, out, order.places, order.starts, tiles, num_out if transposed else 1,
        **_sizes(num_experts, tile, x.dtype, order), K=num_in, N=num_out, TOP_K=top_k, IS_TRANSPOSED=transposed, GATHERS=gathers,
    )  # fmt: skip
    return out


def _tall_product(
    x: Tensor, weight: Tensor, first: Tensor, out: Tensor, order: _Order, top_k: int, *,
    keeps: bool = False, transposed: bool = False, gathers: bool = False,
) -> None:  # fmt: skip
    """Where `_is_tall`. Gated, into first and out, if the weight is [E, 2, F, D]; else `_product`, into out."""
    num_experts, is_gated, size, tile = len(weight), weight.ndim == 4, out.shape[1], _TALL
    if is_gated:
        block = [1, 2, tile.columns // 2, tile.inputs]
    elif transposed:
        block = [1, tile.inputs, tile.columns]
    else:
        block = [1, tile.columns, tile.inputs]
    tiles = _num_tiles(len(order.places), num_experts, tile)
    _tall_kernel[(tiles * triton.cdiv(2 * size if is_gated else size, tile.columns),)](
        x, TensorDescriptor.from_tensor(weight, block), first, out, order.places, order.starts, tiles,
        E=num_experts, BLOCK_E=triton.next_power_of_2(num_experts), K=x.shape[1], N=size, TOP_K=top_k, IS_GATED=is_gated,
        KEEPS=keeps, IS_TRANSPOSED=transposed, GATHERS=gathers, BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.inputs,
        GROUP=16, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _sum_choices(outputs: Tensor, top_k: int, weights: Tensor | None, is_kept: Tensor | None) -> Tensor:
    """[A, D] -> [N, D]: kept ones times their weights, if any, in the order of a token's choices."""
    num_assignments, size = outputs.shape
    out = outputs.new_empty(num_assignments // top_k, size)
    block = min(1024, triton.next_power_of_2(size))
    _sum_kernel[(len(out), triton.cdiv(size, block))](
        outputs, outputs if weights is None else weights, outputs if is_kept is None else _as_bytes(is_kept), out,
        D=size, TOP_K=top_k, HAS_WEIGHTS=weights is not None, HAS_KEPT=is_kept is not None, BLOCK=block,
    )  # fmt: skip
    return out


def _of_first(of_hidden: Tensor, first: Tensor, weights: Tensor, order: _Order, gating: Gating) -> tuple[Tensor, Tensor, Tensor]:
    """([A, R], [A, F], [N, k]): the gradient of the first products, what the gates made times its weight, the gradient of the weights."""
    num_assignments, size = of_hidden.shape
    of_first, scaled = torch.empty_like(first), torch.empty_like(of_hidden)
    of_weights = torch.empty_like(weights) if order.is_whole else torch.zeros_like(weights)
    _of_first_kernel[(num_assignments,)](
        of_hidden, first, weights, of_first, scaled, of_weights, order.places, order.starts,
        E=len(order.starts) - 1, F=size, IS_DOUBLE=gating == "double", BLOCK=min(1024, triton.next_power_of_2(size)),
    )  # fmt: skip
    return of_first, scaled, of_weights


def _of_matrices(left: Tensor, right: Tensor, like: Tensor, order: _Order, top_k: int, *, gathered: Literal["left", "right"]) -> Tensor:
    """The sum over an expert's rows of left times right, for each: [E, M, N]; one side lies by token, the other in the order of experts."""
    num_experts, num_out, num_in = like.shape
    is_many = len(order.places) >= MANY_ROWS * num_experts
    if order.is_whole and is_many and has_grouped_product(left, like) and _zeroes_idle_experts(left):
        tokens = order.places // top_k
        if gathered == "left":
            left = left.index_select(0, tokens)
        else:
            right = right.index_select(0, tokens)
        return grouped_outer(left, right, order.starts[1:])
    out = torch.empty_like(like)
    rows, columns = (min(128, max(16, triton.next_power_of_2(size))) for size in (num_out, num_in))
    inputs = 32 if len(order.places) < 32 * num_experts or like.dtype == torch.float32 else 64
    _of_matrices_kernel[(triton.cdiv(num_out, rows) * triton.cdiv(num_in, columns), num_experts)](
        left, right, out, order.places, order.starts,
        M=num_out, N=num_in, TOP_K=top_k, IS_LEFT_GATHERED=gathered == "left",
        BLOCK_M=rows, BLOCK_N=columns, BLOCK_K=inputs, GROUP=8, PRECISION=_precision(like.dtype), num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def _tile(num_assignments: int, num_experts: int, num_out: int, dtype: torch.dtype, matrices: int = 1) -> _Tile:
    """Tall where experts have many rows. Few rows wait for the weights: there tiles are narrow, so that all of the GPU reads."""
    average = triton.cdiv(num_assignments, num_experts)
    rows = min(64, max(16, triton.next_power_of_2(average)))
    if rows < 64 or dtype == torch.float32:
        tile = _Tile(rows, 32, 64 if dtype == torch.float32 else 128, 4, 3)
    elif average < MANY_ROWS:
        tile = _Tile(64, 128 if matrices < 3 else 64, 64, 8, 3)
    else:
        tile = {1: _Tile(64, 256, 64, 4, 4), 2: _Tile(128, 128, 64, 8, 4), 3: _Tile(128, 64, 64, 8, 4)}[matrices]
    return replace(tile, columns=min(tile.columns, max(16, triton.next_power_of_2(num_out))))


def _is_tall(weight: Tensor, order: _Order) -> bool:
    """Whether its products are made in tall tiles: experts have rows enough, and the copy engine can read the matrices."""
    return (
        TensorDescriptor is not None
        and len(order.places) >= TALL_ROWS * len(weight)
        and weight.element_size() == 2
        and weight.shape[1] % _TALL.inputs == 0
        and weight.shape[2] % _TALL.inputs == 0
        and weight.data_ptr() % 16 == 0
    )


def _zeroes_idle_experts(x: Tensor) -> bool:
    """Torch's grouped product leaves the gradient of an expert without rows unwritten on GPUs after Hopper (pytorch issue 172439)."""
    return x.device.type == "cpu" or torch.cuda.get_device_capability(x.device)[0] == 9


def _as_bytes(is_kept: Tensor) -> Tensor:
    return is_kept.contiguous().view(torch.uint8)


def _num_tiles(num_assignments: int, num_experts: int, tile: _Tile) -> int:
    """As many as there can be: an expert's last one may be of a single row."""
    return min(num_assignments, num_assignments // tile.rows + num_experts)


def _sizes(num_experts: int, tile: _Tile, dtype: torch.dtype, order: _Order) -> dict[str, Any]:
    return {
        "IS_SINGLE": order.is_single,
        "E": num_experts,
        "BLOCK_E": triton.next_power_of_2(num_experts),
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.inputs,
        "GROUP": 8,
        "PRECISION": _precision(dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"
