"""Counts and owners of the KV pool's blocks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from tripod.engine.policy.prefix_cache import PrefixCache
from tripod.errors import EngineError


class OutOfBlocksError(EngineError):
    """The pool has too few free blocks at this moment."""


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


class BlockManager:
    """A free list over blocks of `block_size` tokens each. Every block is free, cached, or owned by one or more.

    A cached block has no owner; it is as good as free, and is taken when no free one is left. Blocks are handed out in the
    order in which they were freed, so equal histories give equal blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, *, is_caching: bool = False) -> None:
        """
        Args:
            is_caching: keep released blocks whose tokens the prefix cache knows.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cache = PrefixCache(block_size, num_remembered=4 * num_blocks) if is_caching else None
        self._free = deque(range(num_blocks))
        self._num_owners = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without an owner whose tokens are kept for reuse."""
        return self.cache.num_idle if self.cache is not None else 0

    @property
    def num_available(self) -> int:
        """Blocks that can be had: free and cached."""
        return self.num_free + self.num_cached

    def num_owners(self, block_id: int) -> int:
        return self._num_owners[block_id]

    def allocate(self, num_tokens: int, now: float = 0.0) -> list[int]:
        """Blocks for `num_tokens` tokens; all of them or none.

        Raises:
            OutOfBlocksError: fewer are available.
        """
        block_ids: list[int] = []
        self.append(block_ids, num_tokens, now)
        return block_ids

    def append(self, block_ids: list[int], num_tokens: int, now: float = 0.0) -> None:
        """Extend an owner's blocks in place until they hold `num_tokens` tokens in all; by all that is missing or not at all.

        Args:
            now: seconds; the time at which cached blocks are given up, if any are.

        Raises:
            OutOfBlocksError: fewer are available.
        """
        num_needed = -(-num_tokens // self.block_size) - len(block_ids)
        if num_needed <= 0:
            return
        if num_needed > self.num_available:
            noun = "block" if num_needed == 1 else "blocks"
            raise OutOfBlocksError(f"{num_needed} {noun} needed, {self.num_available} of {self.num_blocks} free")
        for _ in range(num_needed):
            block_id = self._free.popleft() if self._free else self._evict(now)
            self._num_owners[block_id] = 1
            block_ids.append(block_id)

    def _evict(self, now: float) -> int:
        assert self.cache is not None
        return self.cache.evict(now)

    def share(self, block_ids: Iterable[int]) -> None:
        """One more owner for owned or cached blocks."""
        for block_id in block_ids:
            if self._num_owners[block_id] == 0:
                assert self.cache is not None, f"block {block_id} is free and cannot be shared"
                self.cache.take(block_id)
            self._num_owners[block_id] += 1

    def release(self, block_ids: list[int]) -> None:
        """Give an owner's blocks back; its list is emptied, so that it cannot use or release them again."""
        for block_id in block_ids:
            assert self._num_owners[block_id] > 0, f"block {block_id} is released by more owners than it has"
            self._num_owners[block_id] -= 1
            if self._num_owners[block_id] == 0:
                self._leave(block_id)
        block_ids.clear()

    def trim(self, block_ids: list[int], num_tokens: int) -> None:
        """Give back an owner's last blocks that `num_tokens` tokens do not need."""
        rest = block_ids[blocks_for(num_tokens, self.block_size) :]
        if rest:
            del block_ids[-len(rest) :]
            self.release(rest)

    def _leave(self, block_id: int) -> None:
        if self.cache is None or not self.cache.leave(block_id):
            self._free.append(block_id)

    def reclaim(self, owned: Iterable[int]) -> int:
        """Free what is owned beyond `owned`, which names a block once for each owner. Returns the number of blocks.

        A number above 0 is a defect to be counted and logged.
        """
        expected = Counter(owned)
        lost = [block_id for block_id, count in enumerate(self._num_owners) if count > expected[block_id]]
        for block_id in lost:
            self._num_owners[block_id] = expected[block_id]
            if expected[block_id] == 0:
                self._leave(block_id)
        return len(lost)
