"""The choice of experts in one launch on a GPU, where no gradient is wanted; elsewhere as `tripod.ops.moe_routing` has it."""

from __future__ import annotations

import torch
from torch import Tensor

from tripod.ops import moe_routing as reference
from tripod.ops.kernels.gpu import is_for_gpu
from tripod.ops.moe_routing import Capacity, RouterConfig, Routing


def choose_experts(
    logits: Tensor, config: RouterConfig, *, selection_bias: Tensor | None = None, capacity: Capacity | None = None
) -> Routing:
    """See `tripod.ops.moe_routing.choose_experts`."""
    is_plain = config.chooser == "token" and capacity is None and not torch.is_grad_enabled()
    if is_plain and is_for_gpu(logits) and logits.is_contiguous():
        from tripod.ops.kernels.cuda import experts

        return experts.route(logits, config, selection_bias)
    return reference.choose_experts(logits, config, selection_bias=selection_bias, capacity=capacity)
