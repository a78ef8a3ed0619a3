"""What the records of a run say, beside numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tripod.analysis.routing.recorded import MEASURES, recorded_routing
from tripod.errors import CheckpointError
from tripod.evaluation.table import Table
from tripod.training.routing_record import RoutingRecord, routing_path, write_routing


def record(step: int, *experts: list[tuple[int, int]], first_token: int = 100) -> RoutingRecord:
    """Four tokens of two rows; of each layer, the two choices of each token out of five experts. The second choices were dropped."""
    choices = np.array(experts, np.uint8)
    numbers = np.arange(4, dtype=np.int32)
    is_kept = np.broadcast_to(np.array([True, False]), choices.shape)
    return RoutingRecord(
        step=step,
        layers=(1, 3),
        num_experts=5,
        token_ids=numbers + first_token,
        positions=numbers % 2,
        rows=numbers // 2,
        documents=numbers * 0,
        datasets=numbers * 0,
        experts=choices,
        weights=is_kept.astype(np.float16),
        is_kept=is_kept,
    )


def test_load_and_overlap_are_those_of_the_choices_at_each_recorded_step(tmp_path: Path) -> None:
    write_routing(tmp_path, record(0, [(0, 1), (0, 1), (0, 1), (0, 1)], [(4, 0), (0, 1), (1, 2), (2, 3)]))
    write_routing(tmp_path, record(8, [(1, 0), (1, 0), (2, 0), (3, 0)], [(4, 0), (0, 1), (1, 2), (2, 3)]))
    write_routing(tmp_path, record(16, [(0, 1), (2, 1), (2, 3), (3, 4)], [(0, 4), (0, 1), (1, 2), (4, 2)]))
    table = Table.of(recorded_routing(tmp_path))
    loads = {
        (step, layer): table.where(measure="recorded load", step=step, layer=layer).sorted_by("expert").numbers("value")
        for step in (0, 8, 16)
        for layer in (1, 3)
    }
    assert loads[0, 1] == [4 / 8, 4 / 8, 0, 0, 0]
    assert loads[8, 1] == [4 / 8, 2 / 8, 1 / 8, 1 / 8, 0]
    assert loads[16, 1] == [1 / 8, 2 / 8, 2 / 8, 2 / 8, 1 / 8]
    assert loads[0, 3] == loads[8, 3] == [2 / 8, 2 / 8, 2 / 8, 1 / 8, 1 / 8]
    dead = table.where(measure="recorded dead experts", layer=1)
    assert list(zip(dead.numbers("step"), dead.numbers("value"), strict=True)) == [(0, 3), (8, 1), (16, 0)]
    overlap = {layer: table.where(measure="recorded overlap with the last", layer=layer) for layer in (1, 3)}
    assert overlap[1].numbers("value") == [3 / 8, 5 / 8, 1]  # in common of 2: 2, 1, 0, 0; 2, 1, 1, 1
    assert overlap[3].numbers("value") == [7 / 8, 7 / 8, 1]  # the last token alone moves, by one of its choices
    assert set(overlap[1].numbers("chance")) == {2 / 5}
    assert set(table.column("measure")) == set(MEASURES)


def test_a_record_of_other_tokens_is_left_out_and_a_run_without_any_has_no_rows(tmp_path: Path) -> None:
    assert list(recorded_routing(tmp_path)) == []
    choices = [(0, 1), (0, 1), (0, 1), (0, 1)]
    write_routing(tmp_path, record(0, choices, choices, first_token=7))
    write_routing(tmp_path, record(2, choices, choices))
    assert set(Table.of(recorded_routing(tmp_path)).column("step")) == {2}
    routing_path(tmp_path, 1).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a routing record"):
        list(recorded_routing(tmp_path))
