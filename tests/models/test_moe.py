"""The sparse layer by itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tripod.models.moe import Router
from tripod.ops.moe_routing import RouterConfig


def test_a_router_in_float32_is_not_rounded_where_all_else_is_bfloat16() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, 64, generator=generator) for rows in (40, 6))

    def error(precision: Literal["float32", "model"], x: Tensor) -> float:
        """Of the logits, against float64."""
        router = Router(RouterConfig(num_experts=6, top_k=2, precision=precision), 64, layer=0)
        router.load_state_dict({"weight": weight})
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            return (router(x).logits - x.double() @ weight.double().T).abs().max().item()

    assert error("float32", x) < 1e-4  # sums of 64 products of about 1
    assert error("float32", x.bfloat16()) < 1e-4  # of what a layer before it has rounded
    assert error("model", x) > 1e-2  # bfloat16 keeps 8 bits
