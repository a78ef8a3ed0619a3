"""Attention of one step over the kernels' pool: what the layers of a model are given, and where a fused layer finds the same."""

# N rows, R requests, M blocks of the longest request, H query heads, K head size

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tripod.ops.kernels.cpu.paged_attention import KVPool, paged_attention


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
