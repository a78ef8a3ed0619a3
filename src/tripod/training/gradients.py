"""From rows of tokens to a loss and its gradients."""

# B rows, T targets a row, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tripod.models.language_model import LanguageModel
from tripod.ops.attention import causal_attention
from tripod.training.dropout import RowDropout

Precision = Literal["fp32", "bf16", "fp16"]


def compute_dtype(precision: Precision) -> torch.dtype:
    """The dtype of the matrix products."""
    match precision:
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case _:
            assert_never(precision)


def mixed_precision(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in the given precision; weights, norms, softmax and loss stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, compute_dtype(precision))


def target_losses(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, from float32 logits: tokens [B, T + 1] -> [B, T], float32.

    Every token but the first of a row is a target, ends of documents too; a row is one sequence, over the borders of its documents,
    as in GPT-NeoX.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    positions = torch.arange(inputs.shape[1], device=tokens.device).expand(inputs.shape)
    logits = model.logits(model.hidden(inputs, positions, causal_attention))
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def accumulate_gradients(
    model: LanguageModel,
    tokens: Tensor,
    rows: Sequence[int],
    *,
    micro_rows: int,
    precision: Precision,
    dropout: RowDropout,
    loss_scale: float = 1.0,
) -> Tensor:
    """Add the gradients of the mean loss over all targets of a batch to the parameters, some rows at a time.

    Args:
        model: float32.
        tokens: [B, T + 1], int64, on the model's device.
        rows: their numbers in the run.
        micro_rows: rows at a time, which bounds the memory. The last micro-batch may be smaller.
        precision: of the matrix products.
        dropout: of the model.
        loss_scale: the gradients are multiplied by it.

    Returns:
        The mean loss, a float32 scalar without the scale.
    """
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    num_targets = tokens[:, 1:].numel()
    for start in range(0, len(rows), micro_rows):
        part = slice(start, start + micro_rows)
        with mixed_precision(precision, tokens.device), dropout.training(rows[part]):
            loss = target_losses(model, tokens[part]).sum()
        (loss * (loss_scale / num_targets)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total / num_targets


@torch.no_grad()
def mean_loss(model: LanguageModel, tokens: Tensor, *, micro_rows: int, precision: Precision) -> Tensor:
    """The mean loss over rows [B, T + 1] without gradients: a scalar."""
    return row_losses(model, tokens, micro_rows=micro_rows, precision=precision).mean()


@torch.no_grad()
def row_losses(model: LanguageModel, tokens: Tensor, *, micro_rows: int, precision: Precision) -> Tensor:
    """The mean loss of each row: [B, T + 1] -> [B]."""
    parts = []
    for part in torch.split(tokens, micro_rows):
        with mixed_precision(precision, tokens.device):
            parts.append(target_losses(model, part).mean(1))
    return torch.cat(parts)
