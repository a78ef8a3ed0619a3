"""Batch invariance out of torch: a model computed in tiles of a fixed number of rows, each attending alone.

Torch chooses how it sums by the shape of a whole batch, so a row's bits change with its neighbours. In a tile of a fixed shape they
cannot, as long as a row's place within the tile does not matter either. That is tried out when the engine is built; where it matters,
the tile is made smaller, down to one row, where nothing is left that could differ.
"""

# N tokens of the step, T rows of a tile, H query heads, G key/value heads, K head size

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.models.moe import Router
from tripod.models.pack import modules_of
from tripod.ops.attention import Attend
from tripod.ops.paged_attention import paged_decode, write_pages

TILES = (32, 16, 8, 4, 2, 1)  # rows, by preference


class RowAttention:
    """The `Attend` of one step, each row by a product of its own whose shape depends on the row's position alone."""

    def __init__(self, pages: Tensor, batch: RaggedBatch) -> None:
        """
        Args:
            pages: [L, 2, num_blocks, block_size, G, K].
            batch: the step's tokens.
        """
        self._pages = pages
        self._batch = batch
        self._rows = range(len(batch.token_ids))
        self._places = list(zip(batch.requests.tolist(), batch.positions.tolist(), strict=True))

    def select(self, rows: range) -> None:
        """The next calls are for these rows of the batch, followed by others that do not count."""
        self._rows = rows

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        keys, values = self._pages[layer, 0], self._pages[layer, 1]
        rows = self._rows
        slots = self._batch.slots[rows.start : rows.stop]
        write_pages(keys, slots, key[: len(rows)].to(keys.dtype))
        write_pages(values, slots, value[: len(rows)].to(values.dtype))
        result = torch.zeros_like(query)
        for place, row in enumerate(rows):
            result[place] = self._one(row, query[place : place + 1], keys, values, scale, window)
        return result

    def _one(self, row: int, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        request, position = self._places[row]
        num_seen, seen = position + 1, None
        table = self._batch.block_tables[request : request + 1, : -(-num_seen // keys.shape[1])]
        if window is not None and window < num_seen:
            seen = torch.arange(num_seen, device=query.device)[None] >= num_seen - window
        return paged_decode(query, keys, values, table, num_slots=num_seen, seen=seen, scale=scale)[0]


class RowKVCache(TorchKVCache):
    """A `TorchKVCache` whose rows attend one by one."""

    def attend(self, batch: RaggedBatch) -> RowAttention:  # type: ignore[override]
        return RowAttention(self.pages, batch)


class FixedTiles:
    """A `LanguageModel` whose every product has the same number of rows."""

    def __init__(self, inner: LanguageModel) -> None:
        """Finds the largest tile in which a row's place does not matter."""
        self.config: LanguageModelConfig = inner.config
        self.dtype, self.device = inner.dtype, inner.device
        self._inner = inner
        # How many rows of a tile an expert gets is a matter of their neighbours, which no trial can rule out.
        is_sparse = any(isinstance(module, Router) for module in modules_of(inner))
        self.num_rows = 1 if is_sparse else next(num_rows for num_rows in TILES if self._is_invariant(num_rows))

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[N] -> [N, D]. `attend` is a `RowAttention` of the same N rows."""
        tiles = []
        for start in range(0, len(token_ids), self.num_rows):
            rows = range(start, min(start + self.num_rows, len(token_ids)))
            padding = (0, self.num_rows - len(rows))
            if isinstance(attend, RowAttention):
                attend.select(rows)
            ids, places = pad(token_ids[rows.start : rows.stop], padding), pad(positions[rows.start : rows.stop], padding)
            tiles.append(self._inner.hidden(ids, places, attend)[: len(rows)])
        return torch.cat(tiles)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V]."""
        tiles = torch.split(hidden, self.num_rows)
        return torch.cat([self._inner.logits(pad(rows, (0, 0, 0, self.num_rows - len(rows))))[: len(rows)] for rows in tiles])

    @torch.inference_mode()
    def _is_invariant(self, num_rows: int) -> bool:
        """Whether rows keep their bits when they change places and neighbours."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.config.vocab_size, (num_rows,), generator=generator).to(self.device)
        positions = torch.randint(0, self.config.max_positions, (num_rows,), generator=generator).to(self.device)
        expected = self._rows(ids, positions)
        for shift in range(1, num_rows):
            order = torch.arange(num_rows, device=self.device).roll(shift)
            hidden, logits = self._rows(ids[order], positions[order])
            if not torch.equal(hidden, expected[0][order]) or not torch.equal(logits, expected[1][order]):
                return False
        return True

    def _rows(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._inner.hidden(ids, positions, _see_oneself)
        return hidden, self._inner.logits(hidden)


def _see_oneself(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """An `Attend` in which no row has a neighbour."""
    return value.repeat_interleave(query.shape[-2] // value.shape[-2], dim=-2).contiguous()
