"""The choice of experts on a GPU, where no gradient is wanted: one launch, of logits that were never rounded; elsewhere as
`tripod.ops.moe_routing` has it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from tripod.ops import moe_routing as reference
from tripod.ops.kernels.gpu import is_for_gpu, runs_kernels
from tripod.ops.moe_routing import Capacity, RouterConfig, Routing

_HAS_WIDE_RESULT = "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call] # torch 2.8


def router_logits(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, D], weight [E, D] -> [N, E].

    In float32 on a GPU where no gradient is wanted (torch 2.8 and later): logits rounded to bfloat16 choose another expert now and then.
    """
    if is_for_gpu(x, weight) and not torch.is_grad_enabled() and _HAS_WIDE_RESULT:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return linear(x, weight)


def choose_experts(
    logits: Tensor, config: RouterConfig, *, selection_bias: Tensor | None = None, capacity: Capacity | None = None
) -> Routing:
    """See `tripod.ops.moe_routing.choose_experts`."""
    is_plain = config.chooser == "token" and capacity is None and not torch.is_grad_enabled()
    if is_plain and runs_kernels(logits.device) and logits.is_contiguous():
        from tripod.ops.kernels.cuda import experts

        return experts.route(logits, config, selection_bias)
    return reference.choose_experts(logits, config, selection_bias=selection_bias, capacity=capacity)
