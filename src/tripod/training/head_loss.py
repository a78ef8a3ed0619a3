"""The last matrix of a model and the loss in one: logits are made for some tokens at a time, and become their own gradient."""

# N tokens, D hidden size, V vocabulary

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tripod.ops import cross_entropy as reference
from tripod.ops.kernels.cpu import cross_entropy as cpu_kernels
from tripod.ops.kernels.cpu import threads
from tripod.ops.kernels.cpu.library import is_available
from tripod.ops.onednn_linear import has_onednn_linear, onednn_linear

_MAX_LOGITS = 1 << 26  # numbers at a time: half the memory of one micro-batch of Pythia at most, and enough for the matrix products


class HeadGradients(NamedTuple):
    """Of N tokens."""

    losses: Tensor  # [N], float32: cross-entropy in nats
    of_hidden: Tensor  # [N, D]
    log_sums: Tensor  # [N], float32: of the exponentials of the logits; the loss of z is the mean of their squares


def head_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, without gradients.

    Args:
        hidden: [N, D]; the logits have its dtype, the loss is reduced in float32.
        weight: [V, D].
        targets: [N], int64.

    Returns:
        [N], float32.
    """
    weight = weight.to(hidden.dtype)
    parts = zip(torch.split(hidden, _chunk(weight)), torch.split(targets, _chunk(weight)), strict=True)
    return torch.cat([_cross_entropy_(_product(part, weight), wanted, 0.0, wants_gradient=False) for part, wanted in parts])


def head_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, factor: float, *, z: float = 0.0) -> HeadGradients:
    """Losses, and the gradients of `factor` times their sum: that of the weight is added to `weight.grad`, that of hidden is returned.

    The logits of all tokens never stand in memory at once, those of a chunk once only (an idea of Liger, arXiv:2410.10989).

    Args:
        hidden: [N, D], in the dtype of the matrix products.
        weight: [V, D], the float32 parameter.
        targets: [N], int64.
        factor: of the gradients.
        z: what the gradients have of log(sum of exponentials)^2 beside the cross-entropy, which keeps logits small (arXiv:2204.02311).
    """
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    narrow = weight.detach().to(hidden.dtype)
    losses, gradients, log_sums = [], [], []
    for part, wanted in zip(torch.split(hidden, _chunk(weight)), torch.split(targets, _chunk(weight)), strict=True):
        logits = _product(part, narrow)
        of_targets = logits.gather(1, wanted[:, None]).squeeze(1).float()
        losses.append(_cross_entropy_(logits, wanted, factor))
        log_sums.append(losses[-1] + of_targets)
        if z:  # factor (p - 1) becomes factor ((1 + 2 z log_sum) p - 1)
            more = 2.0 * z * log_sums[-1]
            logits *= (1.0 + more)[:, None].to(logits.dtype)
            logits.scatter_add_(1, wanted[:, None], (factor * more)[:, None].to(logits.dtype))
        gradients.append(_product(logits, narrow.t()))
        _accumulate(weight.grad, logits.t(), part)
    return HeadGradients(torch.cat(losses), torch.cat(gradients), torch.cat(log_sums))


def _chunk(weight: Tensor) -> int:
    """Tokens at a time, a multiple of 64."""
    return max(64, _MAX_LOGITS // weight.shape[0] // 64 * 64)


def _product(x: Tensor, weight: Tensor) -> Tensor:  # [N, A], [B, A] -> [N, B]
    return onednn_linear(x, weight, None) if has_onednn_linear(x) else torch.nn.functional.linear(x, weight)


def _accumulate(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """sums [V, D] += left [V, N] right [N, D]."""
    if sums.dtype == left.dtype:
        sums.addmm_(left, right)
    elif left.dtype == torch.bfloat16 and _has_kernels(sums):
        cpu_kernels.accumulate_bf16_(sums, left @ right)
    else:
        sums += left @ right


def _cross_entropy_(logits: Tensor, targets: Tensor, factor: float, *, wants_gradient: bool = True) -> Tensor:
    if logits.dtype in (torch.float32, torch.bfloat16) and _has_kernels(logits):
        return cpu_kernels.cross_entropy_(logits, targets.contiguous(), factor, wants_gradient=wants_gradient)
    return reference.cross_entropy_(logits, targets, factor, wants_gradient=wants_gradient)


def _has_kernels(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" or not is_available():
        return False
    threads.follow_torch()
    return True
