"""Attention of one step over the pages of a GPU: what the layers of a model are given."""

# N tokens of the step, R requests, M blocks of the longest request, H query heads, G key/value heads, K head size

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tripod.ops.kernels.cuda.paged_attention import PART, Tiles, Turn, decode_attention, paged_attention, place_tokens

SHORT_PART = 64  # tokens of a context that a program reads where there are few programs
FEW_PROGRAMS = 128  # about as many as a large GPU has multiprocessors


class PageAttention:
    """An `Attend`: places the keys and values of each token, then lets it see those of its request up to its own."""

    def __init__(self, pages: Tensor, rows: Tensor, block_tables: Tensor, tiles: Sequence[Tiles] = (), *, longest: int) -> None:
        """
        Args:
            pages: [L, 2, num_blocks, block_size, G, K].
            rows: [3 or more, N], int64: token ids, positions, and slots: block id * block_size + place in the block; below 0 a token
                is padding.
            block_tables: [R, M], int64.
            tiles: which hold each row once; none: each token is of the request of its row in the tables.
            longest: tokens of the longest context, at most.
        """
        self.pages, self.rows, self.block_tables = pages, rows, block_tables
        self.token_ids, self.positions, self.slots = rows[0], rows[1], rows[2]
        self.tiles = tiles
        self.longest = longest
        is_few = self.is_decode and rows.shape[1] * pages.shape[4] <= FEW_PROGRAMS
        self._part = SHORT_PART if is_few else PART
        self._num_parts = -(-longest // self._part)

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
                num_parts=self._num_parts, part=self._part, scale=scale, window=window, turn=turn, out=out,
            )  # fmt: skip
        else:
            query = place_tokens(keys, values, self.slots, self.positions, query, key, value, turn)
            paged_attention(
                query, keys, values, self.block_tables, self.positions, self.tiles,
                num_parts=self._num_parts, part=self._part, scale=scale, window=window, out=out,
            )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """[N, heads, K] whose rows are contiguous, which slices of a joint projection are already."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()
