"""Layers of a model that trains on the processor, by faster ones with the same parameters."""

# N tokens, A and B sizes of a matrix, D hidden size

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tripod.models.moe import Experts
from tripod.ops.kernels import expert_mlp as fast
from tripod.ops.moe_routing import Routing
from tripod.ops.onednn_linear import has_onednn_linear, onednn_linear


def with_fast_layers(model: nn.Module) -> None:
    """Let the linear layers and embeddings of a model run by oneDNN and without needless copies; names and parameters stay.

    Embeddings and experts write into `.grad` themselves: what the optimizer forgets must be zeroed or set to None as before, but a gradient
    taken by `torch.autograd.grad` does not see them.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
        elif type(module) is nn.Embedding:
            module.__class__ = FastEmbedding
        elif type(module) is Experts:
            module.__class__ = FastExperts


class FastLinear(nn.Linear):
    """In float32 by oneDNN, which is up to twice as fast as the library that torch asks, on processors other than Intel's."""

    def forward(self, x: Tensor) -> Tensor:
        if not has_onednn_linear(x) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _OneDnnLinear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


class FastEmbedding(nn.Embedding):
    """Adds the gradients of its rows to those that are there, instead of making a matrix of zeros for them."""

    def forward(self, token_ids: Tensor) -> Tensor:
        return _Rows.apply(self.weight, token_ids)  # type: ignore[no-any-return, no-untyped-call]


class FastExperts(Experts):
    """Adds the gradients of experts that have rows to those that are there, and leaves those of all others alone."""

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        if not fast.is_faster(x, routing, self.up):
            return super().forward(x, routing)
        return fast.expert_mlp(x, routing, self.up, self.down, self.gating, accumulates=True)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # [..., A] -> [..., B]
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return onednn_linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        of_x = onednn_linear(gradient, weight.t(), None).view(x.shape) if ctx.needs_input_grad[0] else None
        of_weight = onednn_linear(gradient.t(), x.reshape(-1, x.shape[-1]).t(), None)
        return of_x, of_weight, gradient.sum(0) if ctx.has_bias else None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, token_ids: Tensor) -> Tensor:
        ctx.save_for_backward(token_ids)
        ctx.weight = weight
        return nn.functional.embedding(token_ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        [token_ids] = ctx.saved_tensors
        weight = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, token_ids.flatten(), gradients[0].reshape(-1, weight.shape[1]).to(weight.dtype))
        return None, None
