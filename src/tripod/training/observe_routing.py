"""Read rows through a sparse model, and record where its routers send their tokens."""

# B rows, T tokens a row

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tripod.errors import ConfigError
from tripod.models.language_model import LanguageModel
from tripod.models.moe import watch_routing
from tripod.ops.moe_routing import Routing
from tripod.training.data.order import Rows
from tripod.training.gradients import Precision, mixed_precision
from tripod.training.packing import Packing
from tripod.training.routing_record import RoutingRecord, expert_dtype


@torch.no_grad()
def observe_routing(
    model: LanguageModel,
    token_ids: Tensor,
    *,
    step: int = 0,
    rows: Sequence[int] | None = None,
    documents: NDArray[np.integer] | None = None,
    datasets: NDArray[np.integer] | None = None,
    micro_rows: int = 8,
    precision: Precision = "fp32",
    packing: Packing | None = None,
) -> RoutingRecord:
    """Record the routing of every token of some rows.

    A model that is training (`model.train()`) drops tokens beyond the capacity of its experts, if they have one; any other drops none.

    Args:
        model: sparse.
        token_ids: [B, T], int64, on the model's device.
        step: of the model.
        rows: the numbers of the rows; from 0.
        documents: [B, T]: from which document a token is; unknown.
        datasets: [B, T]: and of which data set; the first.
        micro_rows: rows at a time. Where experts have a capacity, these are the tokens that compete.
        precision: of the matrix products.
        packing: of the rows; without one, a row is one sequence.

    Raises:
        ConfigError: the model has no router.
    """
    packing = packing or Packing.of_whole_rows(token_ids)
    seen: dict[int, list[Routing]] = {}
    assert isinstance(model, nn.Module)
    with watch_routing(model, lambda layer, routing: seen.setdefault(layer, []).append(routing)):
        for start in range(0, len(token_ids), micro_rows):
            part = slice(start, start + micro_rows)
            packed = packing.part(part)
            with mixed_precision(precision, token_ids.device):
                model.hidden(token_ids[part], packed.positions, packed.attend)
    if not seen:
        raise ConfigError("the model is dense: it has no router whose decisions could be recorded")
    layers = sorted(seen)
    num_experts = seen[layers[0]][0].num_experts
    kept = np.stack(
        [
            _joined([torch.ones_like(one.expert_ids, dtype=torch.bool) if one.is_kept is None else one.is_kept for one in seen[layer]])
            for layer in layers
        ]
    )
    weights = np.stack([_joined([one.weights for one in seen[layer]]) for layer in layers])
    shape = tuple(token_ids.shape)
    numbers = np.arange(len(token_ids)) if rows is None else np.array(rows)
    return RoutingRecord(
        step=step,
        layers=tuple(layers),
        num_experts=num_experts,
        token_ids=_flat(token_ids.cpu().numpy()),
        positions=_flat(packing.positions.cpu().numpy()),
        rows=_flat(np.broadcast_to(numbers[:, None], shape)),
        documents=_flat(np.full(shape, -1) if documents is None else documents),
        datasets=_flat(np.zeros(shape) if datasets is None else datasets),
        experts=np.stack([_joined([one.expert_ids for one in seen[layer]]) for layer in layers]).astype(expert_dtype(num_experts)),
        weights=(weights * kept).astype(np.float16),
        is_kept=kept,
    )


def observe_rows(
    model: LanguageModel, rows: Rows, numbers: Sequence[int], step: int, packing: Packing, *, micro_rows: int, precision: Precision
) -> RoutingRecord:
    """Record the routing of the inputs of some rows of an order, with the documents that they are from; see `observe_routing`."""
    tokens = torch.from_numpy(np.stack([rows.row(row) for row in numbers])[:, :-1].astype(np.int64)).to(model.device)
    documents, datasets = (np.full((len(numbers), rows.seq_length + 1), value, np.int32) for value in (-1, 0))
    for place, row in enumerate(numbers):
        for span in rows.spans(row):
            columns = slice(span.column, span.column + span.num_tokens)
            documents[place, columns] = -1 if span.document is None else span.document
            datasets[place, columns] = span.dataset
    return observe_routing(
        model,
        tokens,
        step=step,
        rows=numbers,
        documents=documents[:, :-1],
        datasets=datasets[:, :-1],
        micro_rows=micro_rows,
        precision=precision,
        packing=packing,
    )


def _joined(parts: list[Tensor]) -> NDArray[np.generic]:
    return torch.cat(parts).cpu().numpy()


def _flat(array: NDArray[np.generic]) -> NDArray[np.int32]:
    return array.astype(np.int32).ravel()
