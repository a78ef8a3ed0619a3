"""The seeded small share of the campaign `kernel-fuzz`: drawn shapes against their definitions, on every level."""

from __future__ import annotations

import pytest
from benchmarks.campaigns.kernel_fuzz import KINDS, run_case

from tests.ops.kernels.cpu.levels import level, needs_kernels

__all__ = ["level"]
pytestmark = needs_kernels


@pytest.mark.campaign
def test_forty_drawn_shapes_are_as_defined(level: str) -> None:
    kinds = [run_case(level, seed) for seed in range(1000, 1040)]
    assert {*kinds} == {*KINDS}
