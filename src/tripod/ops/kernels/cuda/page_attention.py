"""Attention of one step over the pages of a GPU: what the layers of a model are given."""

# N tokens of the step, R requests, M blocks of the longest request, H query heads, G key/value heads, K head size

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tripod.ops.kernels.cuda.paged_attention import Tiles, Turn, decode_attention, paged_attention, place_tokens


class PageAttention:
    """An `Attend`: places the keys and values of each token, then lets it see those of its request up to its own."""

    def __init__(
        self, pages: Tensor, slots: Tensor, positions: Tensor, block_tables: Tensor, tiles: Sequence[Tiles] = (), *, num_parts: int
    ) -> None:
        """
        Args:
            pages: [L, 2, num_blocks, block_size, G, K].
            slots: [N], int64: block id * block_size + place in the block; below 0 a token is padding.
            positions: [N], int64.
            block_tables: [R, M], int64.
            tiles: which hold each row once; none: each token is of the request of its row in the tables.
            num_parts: of the longest context.
        """
        self.pages, self.slots, self.positions, self.block_tables = pages, slots, positions, block_tables
        self.tiles = tiles
        self.num_parts = num_parts

    @property
    def is_decode(self) -> bool:
        """One token of each request."""
        return not self.tiles

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        self.attend(layer, _rows(query), _rows(key), _rows(value), out, scale=scale, window=window)
        return out

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        *,
        scale: float,
        window: int | None = None,
        turn: Turn | None = None,
    ) -> None:
        """As the call, of queries and keys that are to be turned yet.

        Args:
            query: [N, H, K]; heads contiguous, and from head to head the stride of key and value.
            key: [N, G, K].
            value: [N, G, K].
            out: [N, H, K], rows contiguous.
        """
        keys, values = self.pages[layer, 0], self.pages[layer, 1]
        if self.is_decode:
            decode_attention(
                query, key, value, keys, values, self.slots, self.positions, self.block_tables,
                num_parts=self.num_parts, scale=scale, window=window, turn=turn, out=out,
            )  # fmt: skip
        else:
            query = place_tokens(keys, values, self.slots, self.positions, query, key, value, turn)
            paged_attention(
                query, keys, values, self.block_tables, self.positions, self.tiles,
                num_parts=self.num_parts, scale=scale, window=window, out=out,
            )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """[N, heads, K] whose rows are contiguous, which slices of a joint projection are already."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()
