"""A schedule as tensors: the tokens of all requests in one row, without padding."""

# N tokens in the step, R requests that decode, M blocks of the longest of them

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tripod.engine.policy.policy import Schedule


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several tokens of one request."""

    rows: slice  # of the batch
    start: int  # tokens of the request before the chunk
    block_ids: Tensor  # [M], int64


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """What the model and its attention need to know of one step."""

    token_ids: Tensor  # [N], int64
    positions: Tensor  # [N], int64
    slots: Tensor  # [N], int64: where each token's key and value go
    decode_rows: Tensor | None  # [R], int64: rows of requests with one token; None: all rows, in order
    block_tables: Tensor  # [R, M], int64
    context_lens: Tensor  # [R], int64
    max_context_len: int  # 0 where nothing decodes
    is_padded: bool  # the decodes' contexts differ in length
    chunks: tuple[Chunk, ...]

    @classmethod
    def of(cls, schedule: Schedule, block_size: int, device: torch.device) -> RaggedBatch:
        """Lay out the scheduled tokens in the order of the schedule. Reads the requests and changes nothing."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        decode_rows: list[int] = []
        context_lens: list[int] = []
        tables: list[list[int]] = []
        chunks: list[Chunk] = []
        for request, num_tokens in schedule.items():
            start, row, block_ids = request.num_computed_tokens, len(token_ids), request.block_ids
            if num_tokens == 1:
                token_ids.append(request.token_ids(start, start + 1)[0])
                positions.append(start)
                slots.append(block_ids[start // block_size] * block_size + start % block_size)
                decode_rows.append(row)
                context_lens.append(start + 1)
                tables.append(block_ids)
                continue
            span = range(start, start + num_tokens)
            token_ids += request.token_ids(start, start + num_tokens)
            positions += span
            slots += [block_ids[i // block_size] * block_size + i % block_size for i in span]
            chunks.append(Chunk(slice(row, row + num_tokens), start, torch.tensor(block_ids, device=device)))
        max_context_len = max(context_lens, default=0)
        table = np.zeros((len(tables), -(-max_context_len // block_size)), dtype=np.int64)
        for row, block_ids in enumerate(tables):
            num_blocks = -(-context_lens[row] // block_size)
            table[row, :num_blocks] = block_ids[:num_blocks]
        return cls(
            token_ids=torch.tensor(token_ids, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            decode_rows=torch.tensor(decode_rows, device=device) if chunks else None,
            block_tables=torch.from_numpy(table).to(device),
            context_lens=torch.tensor(context_lens, device=device),
            max_context_len=max_context_len,
            is_padded=min(context_lens, default=0) != max_context_len,
            chunks=tuple(chunks),
        )
