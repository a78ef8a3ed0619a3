"""Cross-entropy of logits and, in their place, its gradient: logits are by far the largest tensor of a training step, and pass once."""

# N tokens, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from tripod.ops.shape import expect_shape


def cross_entropy_(logits: Tensor, targets: Tensor, factor: float, *, wants_gradient: bool = True) -> Tensor:
    """The loss of each token; the logits become the gradient of `factor` times their sum.

    Args:
        logits: [N, V], overwritten by factor * (softmax(logits) - one_hot(targets)) in their dtype; reduced in float32.
        targets: [N], int64, from 0 to below V.
        factor: of the gradient, not of the losses.
        wants_gradient: False leaves the logits undefined, and is quicker.

    Returns:
        [N], float32, nats.

    Raises:
        ShapeError: targets is not [N].
    """
    expect_shape("targets", targets, (logits.shape[0],))
    wide = logits.float()
    log_shares = torch.log_softmax(wide, dim=-1)
    losses = -log_shares.gather(1, targets[:, None]).squeeze(1)
    if wants_gradient:
        gradient = log_shares.exp_()
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
        logits.copy_(gradient.mul_(factor))
    return losses
