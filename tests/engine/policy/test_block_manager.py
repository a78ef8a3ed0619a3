"""The KV pool's free list: exact counts, no sharing, nothing lost."""

from __future__ import annotations

import pytest

from tripod.engine.policy.block_manager import BlockManager, OutOfBlocksError


def test_blocks_are_counted_by_rounding_up_and_refused_when_short() -> None:
    blocks = BlockManager(num_blocks=3, block_size=16)
    first = blocks.allocate(num_tokens=33)  # ceil(33 / 16) = 3 blocks
    assert len(first) == 3
    with pytest.raises(OutOfBlocksError, match="1 block needed, 0 of 3 free"):
        blocks.allocate(num_tokens=1)
    blocks.release(first)
    assert len(blocks.allocate(num_tokens=48)) == 3


def test_a_refused_request_takes_nothing() -> None:
    blocks = BlockManager(num_blocks=4, block_size=2)
    held = blocks.allocate(num_tokens=3)
    before = list(held)
    with pytest.raises(OutOfBlocksError, match="3 blocks needed, 2 of 4 free"):
        blocks.append(held, num_tokens=10)
    assert held == before
    assert blocks.num_free == 2


def test_appending_takes_a_block_only_at_the_border() -> None:
    blocks = BlockManager(num_blocks=2, block_size=4)
    held = blocks.allocate(num_tokens=3)
    blocks.append(held, num_tokens=4)
    assert len(held) == 1
    blocks.append(held, num_tokens=5)
    assert sorted(held) == [0, 1]


def test_releasing_twice_is_caught() -> None:
    blocks = BlockManager(num_blocks=2, block_size=4)
    held = blocks.allocate(num_tokens=8)
    copy = list(held)
    blocks.release(held)
    assert held == []
    with pytest.raises(AssertionError, match="released by more owners than it has"):
        blocks.release(copy)


def test_reclaiming_frees_what_nobody_owns_and_counts_it() -> None:
    blocks = BlockManager(num_blocks=5, block_size=1)
    blocks.allocate(num_tokens=2)  # its owner is lost
    kept = blocks.allocate(num_tokens=2)
    assert blocks.reclaim(kept) == 2
    assert blocks.num_free == 3
    assert blocks.reclaim(kept) == 0
