"""From rows of tokens to a loss and its gradients."""

# B rows, T targets a row, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from tripod.models.language_model import LanguageModel
from tripod.training.dropout import RowDropout
from tripod.training.head_loss import head_gradients, head_losses
from tripod.training.loss_terms import LossTerms
from tripod.training.packing import Packing
from tripod.training.recipe import LossRecipe

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


def target_losses(model: LanguageModel, tokens: Tensor, precision: Precision, packing: Packing | None = None) -> Tensor:
    """Cross-entropy of each target in nats: tokens [B, T + 1] -> [B, T], float32.

    Every token but the first of a row is a target, ends and beginnings of documents too, as in GPT-NeoX. Without a packing, a row is one
    sequence.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    packing = packing or Packing.of_whole_rows(inputs)
    with mixed_precision(precision, tokens.device):
        hidden = model.hidden(inputs, packing.positions, packing.attend)
    return head_losses(hidden.flatten(0, 1).to(compute_dtype(precision)), head_weight(model), targets.flatten()).view(targets.shape)


def head_weight(model: LanguageModel) -> Tensor:
    """[V, D]: of the output matrix, or of the embedding that serves as one."""
    parts: Any = model  # a part of the protocol only here: serving asks for logits
    return (parts.embedding if parts.head is None else parts.head).weight  # type: ignore[no-any-return]


def accumulate_gradients(
    model: LanguageModel,
    tokens: Tensor,
    rows: Sequence[int],
    *,
    micro_rows: int,
    precision: Precision,
    dropout: RowDropout,
    loss_scale: float = 1.0,
    num_targets: int | None = None,
    packing: Packing | None = None,
    is_trained: Tensor | None = None,
    terms: LossTerms | None = None,
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
        packing: of the rows; without one, a row is one sequence.
        num_targets: of the whole batch, where these rows are a part of it; those of these rows.
        is_trained: [B, T], bool: which targets count; all.
        terms: of the loss beside cross-entropy; none.

    Returns:
        The sum of the losses over `num_targets`, a float64 scalar without the scale: the mean loss, or this part's share of it.
    """
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    if num_targets is None:
        num_targets = tokens[:, 1:].numel() if is_trained is None else int(is_trained.sum())
    packing = packing or Packing.of_whole_rows(tokens[:, :-1])
    terms = terms or LossTerms(LossRecipe())
    for start in range(0, len(rows), micro_rows):
        part = slice(start, start + micro_rows)
        inputs, targets, packed = tokens[part, :-1], tokens[part, 1:].flatten(), packing.part(part)
        with dropout.training(rows[part]):
            with mixed_precision(precision, tokens.device), terms.watching(model):
                hidden = model.hidden(inputs, packed.positions, packed.attend)
            outputs, gradients = terms.of_routers(loss_scale)
            narrow = hidden.detach().flatten(0, 1).to(compute_dtype(precision))
            counted = None if is_trained is None else is_trained[part].flatten().nonzero().squeeze(1)
            if counted is not None:
                narrow, targets = narrow[counted], targets[counted]
            found = head_gradients(narrow, head_weight(model), targets, loss_scale / num_targets, z=terms.recipe.output_z)
            terms.add_output(found.log_sums, num_targets)
            of_hidden = found.of_hidden
            if counted is not None:
                of_hidden = of_hidden.new_zeros(inputs.numel(), of_hidden.shape[1]).index_copy(0, counted, of_hidden)
            torch.autograd.backward([hidden, *outputs], [of_hidden.view(hidden.shape).to(hidden.dtype), *gradients])
        total += found.losses.sum(dtype=torch.float64)
    return total / num_targets


@torch.no_grad()
def mean_loss(model: LanguageModel, tokens: Tensor, *, micro_rows: int, precision: Precision, packing: Packing | None = None) -> Tensor:
    """The mean loss over rows [B, T + 1] without gradients: a scalar."""
    return row_losses(model, tokens, micro_rows=micro_rows, precision=precision, packing=packing).mean()


@torch.no_grad()
def row_losses(model: LanguageModel, tokens: Tensor, *, micro_rows: int, precision: Precision, packing: Packing | None = None) -> Tensor:
    """The mean loss of each row: [B, T + 1] -> [B]."""
    packing = packing or Packing.of_whole_rows(tokens[:, :-1])
    parts = (slice(start, start + micro_rows) for start in range(0, len(tokens), micro_rows))
    return torch.cat([target_losses(model, tokens[part], precision, packing.part(part)).mean(1) for part in parts])
