"""What a run wrote down of its routing while it trained: known for every step that it recorded, also where the checkpoint is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tripod.analysis.routing.choices import load, num_dead, overlap
from tripod.evaluation.table import Row
from tripod.training.routing_record import read_routing, routing_path, routing_steps

MEASURES = ("recorded load", "recorded dead experts", "recorded overlap with the last")


def recorded_routing(run: Path) -> Iterator[Row]:
    """How evenly the recorded tokens were routed at each step, and how much as at the last recorded one.

    Args:
        run: the folder of a run. One without records has no rows; of a step whose record is of other tokens, as after a change of
            `routing_rows`, there are none either.

    Raises:
        CheckpointError: a record is broken.
    """
    records = [read_routing(routing_path(run, step)) for step in routing_steps(run)]
    for record in records:
        last = records[-1]
        if not all(np.array_equal(getattr(record, name), getattr(last, name)) for name in ("token_ids", "rows", "positions")):
            continue
        for layer, now, then in zip(record.layers, record.experts.astype(np.int64), last.experts, strict=True):
            about: Row = {"step": record.step, "layer": layer}
            of_experts = load(now, record.num_experts)
            for expert, share in enumerate(of_experts.tolist()):
                yield {**about, "measure": "recorded load", "expert": expert, "value": share, "chance": 1 / record.num_experts}
            yield {**about, "measure": "recorded dead experts", "value": float(num_dead(of_experts))}
            chance = record.top_k / record.num_experts
            yield {**about, "measure": "recorded overlap with the last", "value": overlap(now, then), "chance": chance}
