"""A schedule as tensors: the tokens of all requests in one row, without padding."""

# N tokens in the step, R requests, M blocks of the longest of them

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tripod.engine.policy.policy import Schedule


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one request."""

    rows: slice  # of the batch
    start: int  # tokens of the request before these

    @property
    def num_tokens(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def end(self) -> int:
        """Tokens of the request up to and with these."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """What the model and its attention need to know of one step."""

    rows: Tensor  # [4, N], int64: what the properties below name
    block_tables: Tensor  # [R, M], int64; rows shorter than M end in any valid blocks
    spans: tuple[Span, ...]  # R

    @property
    def token_ids(self) -> Tensor:
        """[N]."""
        return self.rows[0]

    @property
    def positions(self) -> Tensor:
        """[N]: the place of each token in its request."""
        return self.rows[1]

    @property
    def slots(self) -> Tensor:
        """[N]: where each token's key and value go: block id * block_size + place in the block."""
        return self.rows[2]

    @property
    def requests(self) -> Tensor:
        """[N]: whose token it is, counted in the order of the schedule."""
        return self.rows[3]

    @classmethod
    def of(cls, schedule: Schedule, block_size: int, device: torch.device) -> RaggedBatch:
        """Lay out the scheduled tokens in the order of the schedule. Reads the requests and changes nothing."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        requests: list[int] = []
        tables: list[int] = []
        spans: list[Span] = []
        num_blocks = -(-max(request.num_computed_tokens + num_tokens for request, num_tokens in schedule.items()) // block_size)
        for row, (request, num_tokens) in enumerate(schedule.items()):
            start = request.num_computed_tokens
            own = range(start, start + num_tokens)
            blocks = request.block_ids[:num_blocks]
            spans.append(Span(slice(len(token_ids), len(token_ids) + num_tokens), start))
            token_ids += request.token_ids(start, own.stop)
            positions += own
            slots += [blocks[position // block_size] * block_size + position % block_size for position in own]
            requests += [row] * num_tokens
            tables += blocks
            tables += [0] * (num_blocks - len(blocks))
        # Plain lists, because most steps are short, and one transfer: each takes as long as some microseconds of a GPU's memory's work.
        joined = torch.from_numpy(np.array(token_ids + positions + slots + requests + tables, dtype=np.int64))
        if device.type == "cuda":
            joined = joined.pin_memory().to(device, non_blocking=True)  # else it waits for what the device is doing
        num_tokens = len(token_ids)
        return cls(joined[: 4 * num_tokens].view(4, -1), joined[4 * num_tokens :].view(-1, num_blocks), tuple(spans))
