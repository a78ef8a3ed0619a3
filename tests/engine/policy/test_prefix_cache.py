"""The tree of cached blocks: exact look-up, and the order in which blocks are given up."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tripod.engine.policy.block_manager import BlockManager, OutOfBlocksError
from tripod.engine.policy.prefix_cache import Node, PrefixCache, digest


def fill(blocks: BlockManager, token_ids: list[int]) -> tuple[Node, list[int]]:
    """Allocate and register the full blocks of a sequence that shares nothing yet."""
    assert blocks.cache is not None
    held = blocks.allocate(len(token_ids))
    node = blocks.cache.root
    for index, block_id in enumerate(held):
        extended = blocks.cache.extend(node, tuple(token_ids[2 * index : 2 * index + 2]), block_id)
        assert extended is not None
        node = extended
    return node, held


def test_a_released_block_stays_until_no_free_one_is_left() -> None:
    blocks = BlockManager(4, 2, is_caching=True)
    _, held = fill(blocks, [1, 2, 3, 4])
    blocks.release(held)
    assert (blocks.num_free, blocks.num_cached, blocks.num_available) == (2, 2, 4)
    assert len(blocks.allocate(6)) == 3
    assert (blocks.num_free, blocks.num_cached) == (0, 1)
    with pytest.raises(OutOfBlocksError, match="2 blocks needed, 1 of 4 free"):
        blocks.allocate(4)


def test_leaves_go_before_what_they_hang_on() -> None:
    blocks = BlockManager(3, 2, is_caching=True)
    _, held = fill(blocks, [1, 2, 3, 4, 5, 6])
    in_order = list(held)
    blocks.release(held)
    assert [blocks.allocate(2) for _ in range(3)] == [[block_id] for block_id in reversed(in_order)]


def test_a_leaf_that_was_used_again_and_grew_goes_after_what_hangs_on_it() -> None:
    blocks = BlockManager(2, 2, is_caching=True)
    assert blocks.cache is not None
    node, held = fill(blocks, [1, 2])
    first = held[0]
    blocks.release(held)
    blocks.share([first])
    grown = blocks.allocate(2)
    second = grown[0]
    assert blocks.cache.extend(node, (3, 4), second) is not None
    blocks.release([first])
    blocks.release(grown)
    assert [blocks.allocate(2) for _ in range(2)] == [[second], [first]]


def test_what_was_used_least_lately_goes_first() -> None:
    blocks = BlockManager(3, 2, is_caching=True)
    assert blocks.cache is not None
    held = [fill(blocks, [token_id, token_id])[1] for token_id in (1, 2, 3)]
    ids = [owned[0] for owned in held]
    for owned in held:
        blocks.release(owned)
    blocks.share([ids[0]])  # used again,
    blocks.release([ids[0]])  # so it counts as new
    assert [blocks.allocate(2)[0] for _ in range(3)] == [ids[1], ids[2], ids[0]]


def test_a_deep_block_stays_longer_than_a_shallow_one_of_the_same_time() -> None:
    blocks = BlockManager(3, 2, is_caching=True)
    assert blocks.cache is not None
    _, deep = fill(blocks, [1, 2, 3, 4])
    _, shallow = fill(blocks, [5, 6])
    deep_ids, shallow_ids = list(deep), list(shallow)
    blocks.release(deep)
    blocks.release(shallow)  # later, but at the beginning of a prompt, where attention is cheap
    assert blocks.allocate(2) == shallow_ids
    assert blocks.allocate(2) == [deep_ids[1]]


def test_sequences_that_differ_share_no_block_even_where_their_tokens_are_the_same() -> None:
    blocks = BlockManager(4, 2, is_caching=True)
    assert blocks.cache is not None
    node, _ = fill(blocks, [1, 2, 3, 4])
    assert blocks.cache.match([1, 2, 3, 4, 5], 4) is node
    assert blocks.cache.match([1, 2, 3, 4, 5], 3).depth == 1
    assert blocks.cache.match([9, 2, 3, 4], 4) is blocks.cache.root


def test_the_same_tokens_in_two_blocks_are_known_once() -> None:
    blocks = BlockManager(4, 2, is_caching=True)
    assert blocks.cache is not None
    _, first = fill(blocks, [1, 2])
    second = blocks.allocate(2)
    assert blocks.cache.extend(blocks.cache.root, (1, 2), second[0]) is None
    blocks.release(second)
    blocks.release(first)
    assert (blocks.num_free, blocks.num_cached) == (3, 1)


def test_asking_the_same_again_and_again_takes_no_memory() -> None:
    blocks = BlockManager(4, 2, is_caching=True)
    assert blocks.cache is not None
    _, held = fill(blocks, [1, 2])
    ids = list(held)
    blocks.release(held)
    for _ in range(1000):
        blocks.share(ids)
        blocks.release(list(ids))
    assert len(blocks.cache._heap) < 50
    assert blocks.allocate(8)[-1] == ids[0]


def test_only_the_latest_evictions_are_remembered() -> None:
    cache = PrefixCache(1, num_remembered=2)
    for block_id in range(3):
        cache.extend(cache.root, (block_id,), block_id)
        cache.leave(block_id)
        assert cache.evict(now=float(block_id)) == block_id
    misses = [cache.explain(cache.root, [token_id, 9], 1, 10.0) for token_id in range(3)]
    assert [miss and miss.evicted_s for miss in misses] == [None, 9.0, 8.0]


def test_digests_do_not_depend_on_the_process() -> None:
    assert digest(0, (1, 2)) == hash((0, (1, 2)))  # integers only: Python's hashes of them are the same everywhere
    assert len({digest(before, (1, 2)) for before in range(100)}) == 100
    assert all(left != right for left, right in pairwise(digest(0, (token_id,)) for token_id in range(100)))
