"""The fast twin of `tripod.ops.expert_mlp` in float32 on a processor, with a backward pass of its own; a GPU's is `cuda.experts`.

Few rows an expert wait for its weights: they go through all experts together, by kernels that read weights where they lie, and none of an
expert without rows. Many rows compute: they go expert by expert, by oneDNN, and what belongs to one stays in the cache; its outputs are
added to their tokens while they are there, weights and all. In both, the gradient of a weight is taken before the last matrix, where rows
are short.
"""

# N tokens, k choices, A assignments (P with what fills tiles), c of an expert; E experts, D hidden size, F size of an expert, R rows of its
# first matrix

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from tripod.ops.expert_mlp import Gating, gated
from tripod.ops.kernels.cpu.gated import gated_rows, gated_rows_gradients_
from tripod.ops.kernels.cpu.grouped_linear import gradient_of_x, grouped_linear, write_gradient_of_weight
from tripod.ops.kernels.cpu.library import is_available, load
from tripod.ops.kernels.gpu import is_for_gpu
from tripod.ops.moe_routing import Dispatch, Routing, dispatch
from tripod.ops.onednn_linear import has_onednn_linear, onednn_linear

# Of an expert, on average, by level of the kernels: fewer go together, which is no slower then (docs/experiments.md).
_FEW_ROWS = {"avx512": 320, "avx2": 48}
_TILE_ROWS = 16


def is_faster(x: Tensor, routing: Routing, up: Tensor) -> bool:
    """Whether this twin takes these tensors, and is the faster of the two."""
    return is_for_gpu(x, up) or _way(x, routing, up) is not None


def expert_mlp(x: Tensor, routing: Routing, up: Tensor, down: Tensor, gating: Gating, *, accumulates: bool = False) -> Tensor:
    """See `tripod.ops.expert_mlp.expert_mlp`; for what `is_faster` says.

    Args:
        accumulates: the gradients of the matrices are added to their `.grad`, only where an expert has rows, and are not returned: a
            gradient taken by `torch.autograd.grad` does not see them. On a GPU they are returned all the same.
    """
    if is_for_gpu(x, up):
        from tripod.ops.kernels.cuda import experts

        return experts.expert_mlp(x, routing, up, down, gating)
    way = _way(x, routing, up)
    assert way is not None, "the caller asks is_faster first"
    return way.apply(x, routing.weights, up, down, dispatch(routing), gating, accumulates)  # type: ignore[no-any-return, no-untyped-call]


class FewRows(torch.autograd.Function):
    """All experts at once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, up: Tensor, down: Tensor, sent: Dispatch, gating: Gating, accumulates: bool
    ) -> Tensor:
        factors = weights.flatten().index_select(0, sent.places)  # [A]
        rows = x.index_select(0, sent.tokens)  # [A, D]
        first = grouped_linear(rows, up, sent.counts)  # [A, R]
        outputs = grouped_linear(_gated(first, factors, gating), down, sent.counts)  # [A, D]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(weights, up, down, rows, first, factors)
            ctx.sent, ctx.gating, ctx.matrices = sent, gating, (up, down) if accumulates else None
        return torch.zeros_like(x).index_add_(0, sent.tokens, outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, up, down, rows, first, factors = ctx.saved_tensors
        sent, [of_out] = ctx.sent, gradients
        of_rows = of_out.index_select(0, sent.tokens)  # [A, D]: of outputs before their factors
        hidden = gradient_of_x(of_rows, down, sent.counts)  # [A, F], likewise
        of_first, of_factors = _gated_gradients_(hidden, first, factors, ctx.gating)
        targets = [_target(matrix, sent, ctx.matrices is not None) for matrix in ctx.matrices or (up, down)]
        for (target, adds), left, right in zip(targets, (of_first, of_rows), (rows, hidden), strict=True):
            write_gradient_of_weight(left, right, sent.counts, target, adds=adds)
        of_x = of_out.new_zeros(of_out.shape).index_add_(0, sent.tokens, gradient_of_x(of_first, up, sent.counts))
        return of_x, _of_weights(weights, sent, of_factors), *_returned(targets, ctx.matrices), None, None, None


class ManyRows(torch.autograd.Function):
    """Expert by expert. A token's experts are added in the order of their numbers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, up: Tensor, down: Tensor, sent: Dispatch, gating: Gating, accumulates: bool
    ) -> Tensor:
        keeps = any(ctx.needs_input_grad)
        tiles = _tiles(sent)
        factors = x.new_zeros(len(tiles.tokens))
        factors[tiles.places] = weights.flatten().index_select(0, sent.places)
        out = torch.zeros_like(x)
        firsts = []
        for expert, rows in tiles.experts:
            tokens = tiles.tokens[rows]
            first = onednn_linear(x.index_select(0, tokens), up[expert], None)  # [c, R]
            out.index_add_(0, tokens, onednn_linear(_gated(first, factors[rows], gating), down[expert], None))
            if keeps:
                firsts.append(first)
        if keeps:
            ctx.save_for_backward(x, weights, up, down, factors, *firsts)
            ctx.sent, ctx.tiles, ctx.gating, ctx.matrices = sent, tiles, gating, (up, down) if accumulates else None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, factors, *firsts = ctx.saved_tensors
        sent, tiles, [of_out] = ctx.sent, ctx.tiles, gradients
        of_x = torch.zeros_like(x)
        of_factors = torch.empty_like(factors)
        targets = [_target(matrix, sent, ctx.matrices is not None) for matrix in ctx.matrices or (up, down)]
        for (expert, rows), first in zip(tiles.experts, firsts, strict=True):
            tokens = tiles.tokens[rows]
            of_row = of_out.index_select(0, tokens)  # [c, D]: of the output before its factor
            hidden = onednn_linear(of_row, down[expert].t(), None)  # [c, F], likewise
            of_first, of_factors[rows] = _gated_gradients_(hidden, first, factors[rows], ctx.gating)
            for (target, adds), left, right in zip(targets, (of_first, of_row), (x.index_select(0, tokens), hidden), strict=True):
                of_matrix = onednn_linear(left.t(), right.t(), None)
                target[expert].add_(of_matrix) if adds else target[expert].copy_(of_matrix)
            of_x.index_add_(0, tokens, onednn_linear(of_first, up[expert].t(), None))
        of_weights = _of_weights(weights, sent, of_factors[tiles.places])
        return of_x, of_weights, *_returned(targets, ctx.matrices), None, None, None


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Assignments by expert, those of each filled up to whole tiles by more of token 0, whose factors are to be 0.

    oneDNN compiles a product for each number of rows and keeps a thousand: as routers learn, nearly every number would be a new one.
    """

    tokens: Tensor  # [P]
    places: Tensor  # [A]: where the assignments are
    experts: tuple[tuple[int, slice], ...]  # that have rows, and where


def _tiles(sent: Dispatch) -> _Tiles:
    counts = sent.counts
    sizes = (counts + _TILE_ROWS - 1) // _TILE_ROWS * _TILE_ROWS
    ends = sizes.cumsum(0)
    shifts = (ends - sizes) - (counts.cumsum(0) - counts)  # by how much an expert's assignments move
    places = torch.arange(len(sent.tokens)) + shifts.repeat_interleave(counts)
    tokens = torch.zeros(int(ends[-1]), dtype=sent.tokens.dtype)
    tokens[places] = sent.tokens
    slices = (slice(end - size, end) for end, size in zip(ends.tolist(), sizes.tolist(), strict=True))
    return _Tiles(tokens, places, tuple((expert, rows) for expert, rows in enumerate(slices) if rows.stop > rows.start))


Way: TypeAlias = type[FewRows] | type[ManyRows]


def _way(x: Tensor, routing: Routing, up: Tensor) -> Way | None:
    is_plain = x.dtype == up.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if not is_plain:
        return None
    level = load() if is_available() else ""
    if routing.expert_ids.numel() < _FEW_ROWS.get(level, _FEW_ROWS["avx2"]) * len(up):
        return FewRows if level and up.is_contiguous() else None
    return ManyRows if has_onednn_linear(x) else None


def _gated(first: Tensor, factors: Tensor, gating: Gating) -> Tensor:
    return gated_rows(first, factors, gating) if is_available() else gated(first, gating).mul_(factors[:, None])


def _gated_gradients_(of_hidden: Tensor, first: Tensor, factors: Tensor, gating: Gating) -> tuple[Tensor, Tensor]:
    """See `gated_rows_gradients_`."""
    if is_available():
        return gated_rows_gradients_(of_hidden, first, factors, gating)
    of_product, of_first = of_hidden * factors[:, None], torch.empty_like(first)
    if gating == "swiglu":
        gate, raw = first.chunk(2, dim=-1)
        of_gate, of_raw = of_first.chunk(2, dim=-1)
    else:
        linear_gate, gate, up = first.chunk(3, dim=-1)
        of_linear_gate, of_gate, of_up = of_first.chunk(3, dim=-1)
        raw = linear_gate * up
        of_raw = torch.empty_like(raw)
    active = silu(gate)
    torch.mul(of_product, active, out=of_raw)
    torch.ops.aten.silu_backward.grad_input(of_product * raw, gate, grad_input=of_gate)
    if gating == "double":
        torch.mul(of_raw, up, out=of_linear_gate)
        torch.mul(of_raw, linear_gate, out=of_up)
    product = active * raw
    of_factors = torch.linalg.vecdot(product, of_hidden)
    torch.mul(product, factors[:, None], out=of_hidden)
    return of_first, of_factors


def _of_weights(weights: Tensor, sent: Dispatch, of_factors: Tensor) -> Tensor:
    return torch.zeros_like(weights).flatten().index_copy_(0, sent.places, of_factors).view_as(weights)


def _target(matrix: Tensor, sent: Dispatch, accumulates: bool) -> tuple[Tensor, bool]:
    """Where the gradient of a matrix goes, and whether it is added to what is there."""
    if accumulates and matrix.grad is not None:
        return matrix.grad, True
    idle = sent.counts == 0
    if 2 * int(idle.sum()) > len(idle):  # zeros of fresh memory are not touched before they are written
        return torch.from_numpy(np.zeros(matrix.shape, np.float32)), False
    target = torch.from_numpy(np.empty(matrix.shape, np.float32))  # numpy's memory lies in large pages, unlike torch's
    target[idle] = 0.0
    return target, False


def _returned(targets: list[tuple[Tensor, bool]], matrices: tuple[Tensor, ...] | None) -> list[Tensor | None]:
    """What autograd is told of the gradients of matrices, now that they are written: nothing, where they are left in `.grad`."""
    if matrices is None:
        return [target for target, _ in targets]
    for matrix, (target, _) in zip(matrices, targets, strict=True):
        matrix.grad = target
    return [None] * len(targets)
