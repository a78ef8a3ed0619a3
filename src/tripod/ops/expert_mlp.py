"""Rows through the gated feed-forward layers that their tokens chose: the definition, in plain torch."""

# N tokens, E experts, D hidden size, F size of an expert, R rows of its first matrix (2 F; 3 F with a double gate)

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor
from torch.nn.functional import silu

from tripod.ops.grouped_linear import grouped_linear
from tripod.ops.moe_routing import Routing, combine, dispatch

Gating: TypeAlias = Literal["swiglu", "double"]


def gated(rows: Tensor, gating: Gating) -> Tensor:
    """What an expert makes of its first product: [..., R] -> [..., F].

    swiglu: rows are gate and up, silu(gate) * up (Shazeer 2020, arXiv:2002.05202).
    double: rows are a, b and up, a * silu(b) * up: OpenMoE, whose gate is twice as wide and gated itself.
    """
    if gating == "swiglu":
        gate, up = rows.chunk(2, dim=-1)
        return silu(gate) * up
    linear_gate, gate, up = rows.chunk(3, dim=-1)
    return linear_gate * silu(gate) * up


def expert_mlp(x: Tensor, routing: Routing, up: Tensor, down: Tensor, gating: Gating) -> Tensor:
    """The weighted sum of what its experts make of each token.

    Args:
        x: [N, D].
        routing: of these tokens.
        up: [E, R, D]: the first matrices.
        down: [E, D, F].
        gating: between the two.

    Returns:
        [N, D] in the dtype of x.

    Raises:
        ShapeError: the shapes do not fit each other.
    """
    sent = dispatch(routing)
    rows = grouped_linear(x.index_select(0, sent.tokens), up, sent.counts)
    return combine(grouped_linear(gated(rows, gating), down, sent.counts), routing, sent)
