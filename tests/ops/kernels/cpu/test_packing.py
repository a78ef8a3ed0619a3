"""Where each weight lies in a panel, byte by byte, and what a packed weight refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.packing import PackedWeight, pack_gate_up, pack_linear, packed_bytes
from tripod.ops.linear_formats import format_weight


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _at(data: Tensor, byte: int, dtype: torch.dtype) -> float:
    return data[byte : byte + dtype.itemsize].clone().view(dtype).item()


def test_each_row_has_four_bytes_in_a_step_of_256() -> None:
    weight = _random(70, 6)
    n, k, panel = 67, 5, 1  # the fourth row of the second panel
    f32 = pack_linear(weight, "f32").data
    assert _at(f32, panel * 6 * 256 + k * 256 + 3 * 4, torch.float32) == weight[n, k]
    bf16 = pack_linear(weight, "bf16").data
    assert _at(bf16, panel * 3 * 256 + 2 * 256 + 3 * 4 + 2, torch.bfloat16) == weight[n, k].bfloat16()
    int8 = pack_linear(weight, "int8").data
    rounded = format_weight(weight, "int8")
    assert rounded.scales is not None
    start = panel * (256 + 2 * 256)
    assert _at(int8, start + 3 * 4, torch.float32) == rounded.scales[n]
    assert int8[start + 256 + 256 + 3 * 4 + 1] == rounded.values[n, k] + 128
    assert int8[start + 256 + 256 + 3 * 4 + 2] == 128  # the seventh input does not exist: a weight of zero


def test_four_bits_lie_by_groups_with_their_scales_before_them() -> None:
    weight = _random(70, 70)
    n, k = 67, 45  # the fourth row of the second panel; group 1, its step 1, of which k is the sixth: a high nibble
    packed, rounded = pack_linear(weight, "int4", 32), format_weight(weight, "int4", 32)
    assert rounded.scales is not None
    group_bytes = 128 + 4 * 256
    start = 3 * group_bytes + group_bytes
    assert _at(packed.data, start + 3 * 2, torch.bfloat16) == rounded.scales[n, 1]
    assert int(packed.data[start + 128 + 256 + 3 * 4 + 1]) >> 4 == rounded.values[n, k] + 8
    assert int(packed.data[start + 128 + 256 + 3 * 4 + 1]) & 15 == rounded.values[n, k - 4] + 8


@pytest.mark.parametrize(
    ("format", "group", "bits"),
    [("f32", None, 32), ("bf16", None, 16), ("int8", None, 8 + 32 / 768), ("int4", 32, 4.5), ("int4", 128, 4.125)],
)
def test_a_packed_weight_is_as_big_as_its_bits(format: str, group: int | None, bits: float) -> None:
    packed = pack_linear(_random(128, 768), format, group)
    assert packed.num_bytes * 8 == 128 * 768 * bits


def test_panels_of_gate_and_up_take_turns() -> None:
    gate, up = _random(100, 8), _random(100, 8, seed=1)
    panel = 8 * 256
    both = pack_gate_up(gate, up, "f32").data.split(panel)
    assert torch.equal(torch.cat([both[0], both[2]]), pack_linear(gate, "f32").data)
    assert torch.equal(torch.cat([both[1], both[3]]), pack_linear(up, "f32").data)


def test_packed_bytes_can_be_mapped_from_a_file(tmp_path: Path) -> None:
    packed = pack_linear(_random(64, 64), "int4", 64)
    (tmp_path / "weight.bin").write_bytes(packed.data.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "weight.bin"), size=packed.num_bytes, dtype=torch.uint8)
    assert torch.equal(PackedWeight(mapped, packed.shape, packed.format, packed.group).data, packed.data)


def test_bytes_that_do_not_fit_or_start_between_cache_lines_are_refused() -> None:
    size = packed_bytes((64, 8), "bf16")
    with pytest.raises(ShapeError, match="needs 1024 bytes"):
        PackedWeight(torch.zeros(size + 1, dtype=torch.uint8), (64, 8), "bf16")
    with pytest.raises(ConfigError, match="multiple of 64"):
        PackedWeight(torch.zeros(size + 64, dtype=torch.uint8)[4 : size + 4], (64, 8), "bf16")
    with pytest.raises(ShapeError, match="one shape"):
        pack_gate_up(_random(64, 8), _random(64, 9), "bf16")
