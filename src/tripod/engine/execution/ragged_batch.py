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

    token_ids: Tensor  # [N], int64
    positions: Tensor  # [N], int64
    slots: Tensor  # [N], int64: where each token's key and value go: block id * block_size + place in the block
    requests: Tensor  # [N], int64: whose token it is, counted in the order of the schedule
    block_tables: Tensor  # [R, M], int64; rows shorter than M end in zeros
    spans: tuple[Span, ...]  # R

    @classmethod
    def of(cls, schedule: Schedule, block_size: int, device: torch.device) -> RaggedBatch:
        """Lay out the scheduled tokens in the order of the schedule. Reads the requests and changes nothing."""
        counts = np.fromiter(schedule.values(), dtype=np.int64, count=len(schedule))
        starts = np.fromiter((request.num_computed_tokens for request in schedule), dtype=np.int64, count=len(schedule))
        ends = np.cumsum(counts)
        requests = np.repeat(np.arange(len(schedule)), counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - counts - starts, counts)
        num_blocks = -(-(starts + counts) // block_size)
        tables = np.zeros((len(schedule), num_blocks.max()), dtype=np.int64)
        token_ids: list[int] = []
        for row, (request, num_tokens) in enumerate(schedule.items()):
            token_ids += request.token_ids(request.num_computed_tokens, request.num_computed_tokens + num_tokens)
            tables[row, : num_blocks[row]] = request.block_ids[: num_blocks[row]]
        slots = tables[requests, positions // block_size] * block_size + positions % block_size
        spans = zip((ends - counts).tolist(), ends.tolist(), starts.tolist(), strict=True)
        # One transfer for all of them: on a GPU each takes as long as some microseconds of its memory's work.
        joined = torch.from_numpy(np.concatenate((token_ids, positions, slots, requests, tables.ravel()))).to(device)
        *by_token, block_tables = joined.split([len(token_ids)] * 4 + [tables.size])
        return cls(*by_token, block_tables.view(tables.shape), tuple(Span(slice(begin, end), start) for begin, end, start in spans))
