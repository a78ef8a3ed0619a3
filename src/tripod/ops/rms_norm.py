"""Root mean square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from tripod.ops.shape import expect_shape


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale x to unit root mean square (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        x: [..., D], float16, bfloat16 or float32; reduced in float32 whatever the input.
        weight: [D], same device as x.
        eps: added to the mean square, dimensionless.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ShapeError: weight is not [D].
    """
    expect_shape("weight", weight, (x.shape[-1],))
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
