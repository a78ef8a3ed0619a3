"""Who owns which block of the KV pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class OutOfBlocksError(Exception):
    """The pool has fewer free blocks than needed. Internal: the policy answers it with preemption, no caller sees it."""


def blocks_for(num_tokens: int, block_size: int) -> int:
    """The number of blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockManager:
    """A free list over blocks of `block_size` tokens each. Every block is free or has exactly one owner.

    Blocks are handed out in the order in which they were freed, so equal histories give equal blocks.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))
        self._is_used = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, num_tokens: int) -> list[int]:
        """Blocks for `num_tokens` tokens; all of them or none.

        Raises:
            OutOfBlocksError: fewer are free.
        """
        block_ids: list[int] = []
        self.append(block_ids, num_tokens)
        return block_ids

    def append(self, block_ids: list[int], num_tokens: int) -> None:
        """Extend an owner's blocks in place until they hold `num_tokens` tokens in all; by all that is missing or not at all.

        Raises:
            OutOfBlocksError: fewer are free.
        """
        num_needed = blocks_for(num_tokens, self.block_size) - len(block_ids)
        if num_needed > len(self._free):
            noun = "block" if num_needed == 1 else "blocks"
            raise OutOfBlocksError(f"{num_needed} {noun} needed, {len(self._free)} of {self.num_blocks} free")
        for _ in range(num_needed):
            block_id = self._free.popleft()
            self._is_used[block_id] = True
            block_ids.append(block_id)

    def release(self, block_ids: list[int]) -> None:
        """Give an owner's blocks back; its list is emptied, so that it cannot use or release them again."""
        for block_id in block_ids:
            assert self._is_used[block_id], f"block {block_id} is released by two owners"
            self._is_used[block_id] = False
            self._free.append(block_id)
        block_ids.clear()

    def reclaim(self, owned: Iterable[int]) -> int:
        """Free every used block outside `owned`, and return their number. A number above 0 is a defect to be counted and logged."""
        kept = set(owned)
        lost = [block_id for block_id in range(self.num_blocks) if self._is_used[block_id] and block_id not in kept]
        num_lost = len(lost)
        self.release(lost)
        return num_lost
