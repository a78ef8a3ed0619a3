"""From rows of tokens to a loss and its gradients."""

# B rows, T targets a row, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, assert_never

import torch
from torch import Tensor

from tripod.models.gpt_neox import GPTNeoX
from tripod.models.llama import Llama
from tripod.ops.attention import causal_attention
from tripod.training.dropout import RowDropout
from tripod.training.head_loss import head_gradients, head_losses

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


def target_losses(model: Llama | GPTNeoX, tokens: Tensor, precision: Precision) -> Tensor:
    """Cross-entropy of each target in nats: tokens [B, T + 1] -> [B, T], float32.

    Every token but the first of a row is a target, ends of documents too; a row is one sequence, over the borders of its documents,
    as in GPT-NeoX.
    """
    targets = tokens[:, 1:]
    with mixed_precision(precision, tokens.device):
        hidden = _hidden(model, tokens)
    return head_losses(hidden.flatten(0, 1).to(compute_dtype(precision)), head_weight(model), targets.flatten()).view(targets.shape)


def head_weight(model: Llama | GPTNeoX) -> Tensor:
    """[V, D]: of the output matrix, or of the embedding that serves as one."""
    return (model.embedding if model.head is None else model.head).weight


def _hidden(model: Llama | GPTNeoX, tokens: Tensor) -> Tensor:  # [B, T + 1] -> [B, T, D]
    inputs = tokens[:, :-1]
    positions = torch.arange(inputs.shape[1], device=tokens.device).expand(inputs.shape)
    return model.hidden(inputs, positions, causal_attention)


def accumulate_gradients(
    model: Llama | GPTNeoX,
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
            hidden = _hidden(model, tokens[part])
        narrow = hidden.detach().flatten(0, 1).to(compute_dtype(precision))
        targets = tokens[part, 1:].flatten()
        losses, gradient = head_gradients(narrow, head_weight(model), targets, loss_scale / num_targets)
        hidden.backward(gradient.view(hidden.shape).to(hidden.dtype))  # type: ignore[no-untyped-call]
        total += losses.sum(dtype=torch.float64)
    return total / num_targets


@torch.no_grad()
def mean_loss(model: Llama | GPTNeoX, tokens: Tensor, *, micro_rows: int, precision: Precision) -> Tensor:
    """The mean loss over rows [B, T + 1] without gradients: a scalar."""
    return row_losses(model, tokens, micro_rows=micro_rows, precision=precision).mean()


@torch.no_grad()
def row_losses(model: Llama | GPTNeoX, tokens: Tensor, *, micro_rows: int, precision: Precision) -> Tensor:
    """The mean loss of each row: [B, T + 1] -> [B]."""
    return torch.cat([target_losses(model, part, precision).mean(1) for part in torch.split(tokens, micro_rows)])
