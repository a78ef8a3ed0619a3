"""The seeded small share of `python -m benchmarks.quality_of_formats`: what formats cost a model that was trained here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from benchmarks.quality_of_formats import Case, compare

import tripod
from tests.engine.execution.test_routes import needs_kernels

if TYPE_CHECKING:
    from tests.rag.planted import Planted

CASES = (Case("f32"), Case("f32", "int8", most=1e-3), Case("int8", most=5e-3), Case("int4"))


@pytest.mark.campaign
@needs_kernels
def test_8_bits_cost_a_trained_model_next_to_nothing_and_4_bits_more(planted: Planted) -> None:
    rows = planted.run.order().rows
    plain, kv, int8, int4 = tripod.run(compare(planted.address, [rows.row(row).tolist() for row in range(12)], CASES))
    assert plain.perplexity < 30, "it has learnt something, of 700 tokens"
    assert plain.added == 0.0
    assert (kv.is_kept, int8.is_kept) == (True, True)
    assert abs(int4.added) > abs(int8.added)
    assert kv.kv_bytes_per_token == plain.kv_bytes_per_token * (32 + 4) // (32 * 4)  # heads of 32 numbers, and a scale
