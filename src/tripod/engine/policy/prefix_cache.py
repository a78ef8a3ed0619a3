"""Which blocks hold which tokens: prompts that begin alike share the keys and values of their beginning.

A tree whose edges are full blocks of tokens (RadixAttention, Zheng et al. 2024, arXiv:2312.07104, with the stride of a
block). A child is found by its tokens themselves, so two prompts are never taken for one another. Whoever owns a block
owns all blocks before it; a block without an owner stays until its place is needed, leaves first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

_ATTENTION_TOKENS = 4096  # context at which attention costs as much as the rest of a layer: 6 hidden sizes of some 700
_NUM_COMPARED = 32  # branches that are compared, newest first, to say where a prompt differs


@dataclass(slots=True, eq=False)
class Node:
    """A full block of tokens, behind those of its parents."""

    token_ids: tuple[int, ...]
    block_id: int
    parent: Node | None
    depth: int  # blocks up to its end
    digest: int  # of all tokens up to its end
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    is_idle: bool = False  # nobody owns it
    worth: float = 0.0  # the idle node of least worth goes first
    stamp: int = -1  # of its newest entry in the heap


@dataclass(frozen=True, slots=True)
class CacheMiss:
    """Why the prefix cache covered no more of a prompt."""

    kind: Literal["differs", "evicted", "unseen", "scored"]
    position: int  # index of the first token of the prompt for which the reason holds
    given_id: int | None = None  # "differs": the prompt's token there
    cached_id: int | None = None  # "differs": that of the closest sequence in the cache, among the newest that go on from the same blocks
    evicted_s: float | None = None  # "evicted": seconds ago

    def __str__(self) -> str:
        match self.kind:
            case "differs":
                return f"token {self.position} is {self.given_id}; the closest cached sequence has {self.cached_id} there"
            case "evicted":
                return f"the tokens from {self.position} on were cached and were evicted {self.evicted_s:.1f} s ago, to make room"
            case "unseen":
                return f"nothing like the tokens from {self.position} on is in the cache"
            case "scored":
                return f"log-probabilities of the prompt were asked for, so its tokens from {self.position} on were computed"


class PrefixCache:
    """The tree, and the order in which its idle blocks are given up.

    That order is GreedyDual's (Young 1994): a block's worth is the cost of computing it again, which grows with the context
    before it, above the worth of the last one that was given up. So what was used lately stays, and what is dear stays longer.
    """

    def __init__(self, block_size: int, num_remembered: int) -> None:
        """
        Args:
            block_size: tokens in a block.
            num_remembered: evictions of which the time is kept, to explain a miss.
        """
        self.block_size = block_size
        self.num_idle = 0
        self.root = Node((), -1, None, 0, 0)
        self._nodes: dict[int, Node] = {}  # by block id
        self._heap: list[tuple[float, int, Node]] = []  # idle leaves, and entries that are out of date
        self._num_stamps = 0
        self._given_up = 0.0  # the worth of the last block that was
        self._num_remembered = num_remembered
        self._evicted_s: dict[int, float] = {}  # by digest, oldest first

    def match(self, token_ids: Sequence[int], num_tokens: int) -> Node:
        """The last of the cached blocks that hold the first tokens, at most `num_tokens` of them; the root if none does."""
        node, size = self.root, self.block_size
        for start in range(0, num_tokens - size + 1, size):
            child = node.children.get(tuple(token_ids[start : start + size]))
            if child is None:
                break
            node = child
        return node

    def path(self, node: Node) -> list[Node]:
        """The blocks from the beginning to this one; none for the root."""
        nodes: list[Node] = []
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def extend(self, node: Node, token_ids: tuple[int, ...], block_id: int) -> Node | None:
        """Hang a computed block behind an owned one. None: another block holds these tokens already."""
        if token_ids in node.children:
            return None
        child = Node(token_ids, block_id, node, node.depth + 1, digest(node.digest, token_ids))
        node.children[token_ids] = self._nodes[block_id] = child
        self._evicted_s.pop(child.digest, None)
        return child

    def take(self, block_id: int) -> None:
        """Somebody owns an idle block again."""
        node = self._nodes[block_id]
        node.is_idle = False
        node.stamp = -1  # its entry in the heap says nothing any more: something may hang on it when it is idle again
        self.num_idle -= 1

    def leave(self, block_id: int) -> bool:
        """Nobody owns a block any more. False: the cache does not know it, so it is free."""
        node = self._nodes.get(block_id)
        if node is None:
            return False
        node.is_idle = True
        node.worth = self._given_up + 1.0 + node.depth * self.block_size / _ATTENTION_TOKENS
        self.num_idle += 1
        if not node.children:
            self._offer(node)
        return True

    def evict(self, now: float) -> int:
        """Give up the idle block of least worth that nothing hangs on; there must be an idle one. Returns its id."""
        while True:
            _, stamp, node = heapq.heappop(self._heap)
            if node.stamp == stamp and node.is_idle:
                break
        parent = node.parent
        assert parent is not None
        assert not node.children
        self._given_up = node.worth
        self.num_idle -= 1
        node.is_idle = False
        del parent.children[node.token_ids], self._nodes[node.block_id]
        if parent.is_idle and not parent.children:
            self._offer(parent)
        self._evicted_s[node.digest] = now
        if len(self._evicted_s) > self._num_remembered:
            del self._evicted_s[next(iter(self._evicted_s))]
        return node.block_id

    def _offer(self, node: Node) -> None:
        node.stamp = self._num_stamps
        self._num_stamps += 1
        heapq.heappush(self._heap, (node.worth, node.stamp, node))
        if len(self._heap) > 2 * len(self._nodes) + 16:  # mostly out of date: prompts that are asked again and again
            self._heap = [entry for entry in self._heap if entry[2].stamp == entry[1] and entry[2].is_idle]
            heapq.heapify(self._heap)

    def explain(self, node: Node, token_ids: Sequence[int], num_tokens: int, now: float) -> CacheMiss | None:
        """Why `match` ended at a node. None: what is left is less than a block, and like what is cached or like nothing.

        Args:
            node: what `match` returned.
            token_ids: the whole prompt.
            num_tokens: of it, those that could be taken from the cache.
            now: seconds of the clock by which blocks were evicted.
        """
        start = node.depth * self.block_size
        wanted = tuple(token_ids[start : start + self.block_size])
        is_whole = start + self.block_size <= num_tokens
        evicted_s = self._evicted_s.get(digest(node.digest, wanted)) if is_whole else None
        if evicted_s is not None:
            return CacheMiss("evicted", start, evicted_s=max(0.0, now - evicted_s))
        newest = islice(reversed(node.children), _NUM_COMPARED)
        num_alike, closest = max(((_num_alike(wanted, other), other) for other in newest), key=_first, default=(0, ()))
        if num_alike == len(wanted):
            return None
        if not closest or (num_alike == 0 and node.parent is None):
            return CacheMiss("unseen", start) if is_whole else None
        return CacheMiss("differs", start + num_alike, given_id=wanted[num_alike], cached_id=closest[num_alike])

    def nodes(self) -> Iterator[Node]:
        """Every block that the cache knows."""
        return iter(self._nodes.values())


def digest(before: int, token_ids: tuple[int, ...]) -> int:
    """Names a sequence of blocks by the name of the blocks before and the tokens of the last; equal in every process."""
    return hash((before, token_ids))


def _num_alike(left: Sequence[int], right: Sequence[int]) -> int:
    return next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _first(pair: tuple[int, tuple[int, ...]]) -> int:
    return pair[0]
