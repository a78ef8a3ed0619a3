"""The probes do the work that they are timed for."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels.cpu.levels import level, needs_kernels
from tripod.ops.kernels.cpu.probe import bytes_per_second, operations_per_second, read_sum
from tripod.ops.kernels.cpu.threads import set_num_threads

__all__ = ["level"]
pytestmark = needs_kernels


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_lines", [0, 1, 7, 1000])
def test_every_word_is_read_once(level: str, num_threads: int, num_lines: int) -> None:
    set_num_threads(num_threads)
    words = torch.arange(16 * num_lines, dtype=torch.int32)
    assert read_sum(words.view(torch.uint8)) == words.sum()


def test_the_rates_are_of_a_processor(level: str) -> None:
    assert 1e6 < bytes_per_second(torch.ones(1 << 22, dtype=torch.uint8)) < 1e13
    for weight_format in ("f32", "bf16", "int8", "int4"):
        assert 1e7 < operations_per_second(weight_format, 20_000) < 1e14
