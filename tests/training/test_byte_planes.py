"""Planes against numpy's own view of the bytes."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.errors import MissingExtraError
from tripod.training.byte_planes import PlanePacker, decompressor, entropy_bytes, merge, split


@given(st.binary(max_size=64), st.sampled_from([1, 2, 4, 8]))
def test_merging_what_was_split_gives_the_bytes_again(content: bytes, item_bytes: int) -> None:
    raw = np.frombuffer(content[: len(content) // item_bytes * item_bytes], np.uint8)
    planes = split(raw, item_bytes)
    assert [plane.tolist() for plane in planes] == [raw[place::item_bytes].tolist() for place in range(item_bytes)]
    out = np.zeros_like(raw)
    merge(planes, out)
    assert out.tobytes() == raw.tobytes()


def test_the_entropy_of_a_quarter_and_three_quarters_is_as_in_the_textbook() -> None:
    plane = np.array([0, 1, 1, 1] * 100, np.uint8)
    assert entropy_bytes(plane) == pytest.approx(400 / 8 * (0.25 * math.log2(4) + 0.75 * math.log2(4 / 3)))
    assert entropy_bytes(np.zeros(100, np.uint8)) == 0
    assert entropy_bytes(np.empty(0, np.uint8)) == 0


def test_noise_is_not_packed_and_few_values_come_close_to_their_entropy() -> None:
    generator = np.random.default_rng(0)
    packer = PlanePacker(16)
    assert packer.pack(generator.integers(0, 256, 100_000).astype(np.uint8)) is None
    plane = generator.normal(100, 3, 100_000).astype(np.uint8)
    packed = packer.pack(plane)
    assert packed is not None
    assert decompressor().decompress(packed) == plane.tobytes()
    assert len(packed) < 1.03 * entropy_bytes(plane)


def test_without_zstandard_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"tripod\[training\]"):
        PlanePacker(3)
