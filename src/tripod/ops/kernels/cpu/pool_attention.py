"""Attention of one step over the kernels' pool: what the layers of a model are given, and where a fused layer finds the same."""

# N rows, R requests or texts, M blocks of the longest, H query heads, K head size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tripod.errors import ShapeError
from tripod.ops.kernels.cpu.paged_attention import BLOCK_SIZE, KVPool, paged_attention


@dataclass(frozen=True, slots=True, eq=False)
class PoolAttention:
    """An `Attend`: writes the keys and values of each row to its slot, then lets it see those of its request up to its own."""

    pool: KVPool
    slots: Tensor  # [N], int64: block id * 16 + place in the block
    requests: Tensor  # [N], int64: the row of block_tables that belongs to each
    positions: Tensor  # [N], int64
    block_tables: Tensor  # [R, M], int64

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        self.pool.write(layer, key, value, self.slots)
        return paged_attention(
            query,
            self.pool,
            layer,
            requests=self.requests,
            positions=self.positions,
            block_tables=self.block_tables,
            scale=scale,
            window=window,
        )


class TextAttention:
    """The twin of `tripod.ops.attention.bidirectional_attention`: each token sees all of its own text.

    All layers use one layer's place, one after the other. A token's bits depend on its text alone.
    """

    def __init__(self, lengths: Sequence[int], *, num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        """
        Args:
            lengths: tokens of each text, at least one; the texts lie one after the other.
            num_heads: H, of queries as of keys.
            head_dim: K.
            dtype: in which keys and values are kept and multiplied: float32 or bfloat16.

        Raises:
            ConfigError: the kernels cannot keep such heads.
        """
        sizes = torch.tensor(lengths, dtype=torch.int64)
        num_blocks = (sizes + BLOCK_SIZE - 1) // BLOCK_SIZE  # [R]
        first_block = num_blocks.cumsum(0) - num_blocks
        requests = torch.arange(len(sizes)).repeat_interleave(sizes)  # [N]
        places = torch.arange(len(requests)) - (sizes.cumsum(0) - sizes)[requests]
        tables = (first_block[:, None] + torch.arange(int(num_blocks.max()))).clamp_(max=int(num_blocks.sum()) - 1)  # [R, M]
        pool = KVPool.allocate(num_layers=1, num_blocks=int(num_blocks.sum()), num_kv_heads=num_heads, head_dim=head_dim, dtype=dtype)
        self._inner = PoolAttention(pool, first_block[requests] * BLOCK_SIZE + places, requests, (sizes - 1)[requests], tables)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        if window is not None:
            raise ShapeError(f"window={window} was given to bidirectional attention, in which every token sees its whole text")
        return self._inner(0, query, key, value, scale=scale)
