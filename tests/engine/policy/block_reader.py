"""A simulated executor that sees tokens only through the blocks: its next token is a hash of what it reads there.

A block that is shared wrongly, overwritten, copied too late or taken for another therefore shows as a wrong token.
"""

from __future__ import annotations

from collections.abc import Sequence

from tripod.engine.policy.policy import Policy, Schedule
from tripod.engine.policy.request import Request

VOCAB_SIZE = 8


def next_token(token_ids: Sequence[int], vocab_size: int = VOCAB_SIZE) -> int:
    """The model: a token that depends on all tokens before it and on their order (FNV-1a)."""
    state = 0x811C9DC5
    for token_id in token_ids:
        state = ((state ^ (token_id + 1)) * 0x01000193) & 0xFFFFFFFF
    return (state >> 7) % vocab_size


def answer_alone(prompt_ids: Sequence[int], max_tokens: int, stop_ids: frozenset[int]) -> list[int]:
    """What the model says to a prompt when nothing is shared, cut, or computed twice."""
    token_ids = list(prompt_ids)
    for _ in range(max_tokens):
        token_ids.append(next_token(token_ids))
        if token_ids[-1] in stop_ids:
            break
    return token_ids[len(prompt_ids) :]


class BlockReader:
    """The pool as tokens, and the step on it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.blocks = [[-1] * block_size for _ in range(num_blocks)]

    def run(self, policy: Policy, schedule: Schedule) -> dict[Request, list[int]]:
        """Copy, write, then read: as the runner does with keys and values."""
        for source, target in policy.take_copies():
            self.blocks[target] = list(self.blocks[source])
        for request, num_tokens in schedule.items():
            start = request.num_computed_tokens
            for position, token_id in enumerate(request.token_ids(start, start + num_tokens), start):
                self.blocks[request.block_ids[position // self.block_size]][position % self.block_size] = token_id
        return {
            request: self._sample(request, num_tokens - request.num_pending_tokens)
            for request, num_tokens in schedule.items()
            if num_tokens >= request.num_pending_tokens and request.max_tokens > 0
        }

    def _sample(self, request: Request, num_drafts: int) -> list[int]:
        """The token after the known ones, and one more behind each draft that it agrees with."""
        token_ids = self.read(request, request.num_tokens + num_drafts)
        sampled: list[int] = []
        for num_known in range(request.num_tokens, len(token_ids) + 1):
            sampled.append(next_token(token_ids[:num_known]))
            if num_known < len(token_ids) and token_ids[num_known] != sampled[-1]:
                break
        return sampled

    def read(self, request: Request, num_tokens: int) -> list[int]:
        size = self.block_size
        return [self.blocks[request.block_ids[position // size]][position % size] for position in range(num_tokens)]
