"""The fast twin of `tripod.ops.expert_mlp` in float32 on a processor: one pass over the experts, what belongs to one stays in the cache.

An expert's outputs are added to their tokens while they are there, weights and all, so that no [A, D] of them is ever written; the
gradient of a weight is taken before the last matrix, where rows are short.
"""

# N tokens, k choices, A assignments, E experts, D hidden size, F size of an expert, R rows of its first matrix

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tripod.ops.expert_mlp import Gating, gated
from tripod.ops.grouped_linear import has_grouped_product
from tripod.ops.moe_routing import Dispatch, Routing, dispatch
from tripod.ops.onednn_linear import has_onednn_linear, onednn_linear

_MANY_ROWS = 48  # an expert, on average: with fewer, the steps between the products take longer than oneDNN saves


def can_run(x: Tensor, up: Tensor) -> bool:
    """Whether this twin takes these tensors."""
    return has_onednn_linear(x) and has_onednn_linear(up) and not torch.is_autocast_enabled("cpu")


def is_faster(x: Tensor, routing: Routing, up: Tensor) -> bool:
    """Whether it takes them and is the faster of the two."""
    return can_run(x, up) and (routing.expert_ids.numel() >= _MANY_ROWS * len(up) or not has_grouped_product(x, up))


def expert_mlp(x: Tensor, routing: Routing, up: Tensor, down: Tensor, gating: Gating) -> Tensor:
    """See `tripod.ops.expert_mlp.expert_mlp`; float32. A token's experts are added in the order of their numbers."""
    return _ExpertMLP.apply(x, routing.weights, up, down, dispatch(routing), gating)  # type: ignore[no-any-return, no-untyped-call]


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, up: Tensor, down: Tensor, sent: Dispatch, gating: Gating) -> Tensor:
        keeps = any(ctx.needs_input_grad)
        factors = weights.flatten().index_select(0, sent.places)  # [A]
        out = torch.zeros_like(x)
        firsts = []
        for expert, rows in _experts(sent):
            tokens = sent.tokens[rows]
            first = onednn_linear(x.index_select(0, tokens), up[expert], None)  # [c, R]
            out.index_add_(0, tokens, onednn_linear(gated(first, gating).mul_(factors[rows, None]), down[expert], None))
            if keeps:
                firsts.append(first)
        if keeps:
            ctx.save_for_backward(x, weights, up, down, *firsts)
            ctx.sent, ctx.gating, ctx.factors = sent, gating, factors
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, *firsts = ctx.saved_tensors
        sent, factors, [of_out] = ctx.sent, ctx.factors, gradients
        of_x = torch.zeros_like(x)
        of_factors = torch.empty_like(factors)
        of_up, of_down = torch.empty_like(up), torch.empty_like(down)
        _zero_idle(sent, of_up, of_down)
        for (expert, rows), first in zip(_experts(sent), firsts, strict=True):
            tokens, factor = sent.tokens[rows], factors[rows, None]
            of_row = of_out.index_select(0, tokens)  # [c, D]: the gradient of the output before its factor
            of_hidden = onednn_linear(of_row, down[expert].t(), None)  # [c, F], likewise
            with torch.enable_grad():
                leaf = first.detach().requires_grad_()
                hidden = gated(leaf, ctx.gating)
            [of_first] = torch.autograd.grad(hidden, leaf, of_hidden * factor)
            hidden = hidden.detach()
            of_factors[rows] = torch.linalg.vecdot(hidden, of_hidden)
            of_down[expert] = onednn_linear(of_row.t(), (hidden * factor).t(), None)
            of_up[expert] = onednn_linear(of_first.t(), x.index_select(0, tokens).t(), None)
            of_x.index_add_(0, tokens, onednn_linear(of_first, up[expert].t(), None))
        of_weights = torch.zeros_like(weights).flatten().index_copy_(0, sent.places, of_factors).view_as(weights)
        return of_x, of_weights, of_up, of_down, None, None


def _experts(sent: Dispatch) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, with the place of them."""
    start = 0
    for expert, count in enumerate(sent.counts.tolist()):
        if count:
            yield expert, slice(start, start + count)
        start += count


def _zero_idle(sent: Dispatch, *gradients: Tensor) -> None:
    """The gradients of the experts that have no rows."""
    for expert, count in enumerate(sent.counts.tolist()):
        if not count:
            for gradient in gradients:
                gradient[expert].zero_()
