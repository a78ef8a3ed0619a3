"""The file in which a run keeps its routing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tripod.errors import CheckpointError, ShapeError
from tripod.training.routing_record import RoutingRecord, expert_dtype, read_routing, routing_steps, write_routing


def record(step: int = 4, num_experts: int = 16) -> RoutingRecord:
    """Six tokens, two sparse layers, two choices."""
    generator = np.random.default_rng(0)
    numbers = np.arange(6, dtype=np.int32)
    return RoutingRecord(
        step=step,
        layers=(1, 3),
        num_experts=num_experts,
        token_ids=numbers + 100,
        positions=numbers % 3,
        rows=numbers // 3,
        documents=numbers - 1,
        datasets=np.zeros(6, np.int32),
        experts=generator.integers(0, num_experts, (2, 6, 2)).astype(expert_dtype(num_experts)),
        weights=generator.random((2, 6, 2)).astype(np.float16),
        is_kept=generator.random((2, 6, 2)) < 0.8,
    )


def test_what_is_written_is_read_and_any_reader_of_safetensors_finds_it(tmp_path: Path) -> None:
    written = record()
    path = write_routing(tmp_path, written)
    found = read_routing(path)
    assert (found.step, found.layers, found.num_experts, found.num_tokens, found.top_k) == (4, (1, 3), 16, 6, 2)
    assert path == tmp_path / "routing" / "step4.safetensors"
    plain = load_file(path)
    for name, array in written.arrays().items():
        assert plain[name].dtype == array.dtype == found.arrays()[name].dtype
        assert np.array_equal(plain[name], array)
        assert np.array_equal(found.arrays()[name], array)


def test_more_than_256_experts_take_two_bytes(tmp_path: Path) -> None:
    assert read_routing(write_routing(tmp_path, record(num_experts=256))).experts.dtype == np.uint8
    assert read_routing(write_routing(tmp_path, record(num_experts=257))).experts.dtype == np.uint16


def test_the_steps_of_a_run_are_in_order_and_a_dense_one_has_none(tmp_path: Path) -> None:
    assert routing_steps(tmp_path) == ()
    for step in (16, 0, 2):
        write_routing(tmp_path, record(step))
    (tmp_path / "routing" / ".partial-step32.safetensors-1").touch()
    assert routing_steps(tmp_path) == (0, 2, 16)


def test_arrays_that_do_not_fit_and_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"positions is \[5\]"):
        replace(record(), positions=np.zeros(5, np.int32))
    (tmp_path / "routing").mkdir()
    (tmp_path / "routing" / "step1.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a routing record"):
        read_routing(tmp_path / "routing" / "step1.safetensors")
