"""Batch invariance out of torch: a model computed in tiles of fixed numbers of rows, each row attending alone.

Torch chooses how it sums by the shape of a whole batch, so a row's bits change with its neighbours. In a tile of a fixed shape they
cannot, as long as a row's place within the tile does not matter either. That is tried out when the engine is built; where it matters,
the tile is made smaller, down to one row, where nothing is left that could differ. Tiles of other heights are used beside it if their
rows get the same bits in that trial: tall ones for prompts, low ones for a few streams.
"""

# N tokens of the step, S tokens that a request has, D hidden size, V vocabulary, H query heads, G key/value heads, K head size

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.models.moe import Router
from tripod.models.pack import modules_of
from tripod.ops.attention import Attend
from tripod.ops.paged_attention import gather_pages, write_pages

TILES = (32, 16, 8, 4, 2, 1)  # rows, by preference
OTHER_TILES = (128, 64, 16, 8)
ROWS_OF_WEIGHTS = 8  # reading the weights for one more tile takes as long as computing so many more rows


class RowAttention:
    """The `Attend` of one step, each row by a product of its own whose shape depends on the row's position alone.

    Not as a batch of such products: which thread computes one, and so its last bit, would depend on how many there are.
    In float32 at least, whatever the model's type is: on CPUs torch attends with one query six times slower in bfloat16.
    """

    def __init__(self, pages: Tensor, batch: RaggedBatch) -> None:
        """
        Args:
            pages: [L, 2, num_blocks, block_size, G, K].
            batch: the step's tokens.
        """
        self._pages = pages
        self._batch = batch
        self._positions = batch.positions.tolist()
        self.select(range(len(self._positions)))

    def select(self, rows: range) -> None:
        """The next calls are for these rows of the batch, followed by others that do not count."""
        self._rows = rows
        self._spans = [
            (request, range(max(span.rows.start, rows.start), min(span.rows.stop, rows.stop)))
            for request, span in enumerate(self._batch.spans)
            if span.rows.start < rows.stop and rows.start < span.rows.stop
        ]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        keys, values = self._pages[layer, 0], self._pages[layer, 1]
        rows, dtype = self._rows, torch.promote_types(query.dtype, torch.float32)
        slots = self._batch.slots[rows.start : rows.stop]
        write_pages(keys, slots, key[: len(rows)].to(keys.dtype))
        write_pages(values, slots, value[: len(rows)].to(values.dtype))
        result = torch.zeros_like(query)
        for request, span in self._spans:
            num_blocks = self._positions[span.stop - 1] // keys.shape[1] + 1
            table = self._batch.block_tables[request : request + 1, :num_blocks]
            seen_keys, seen_values = (gather_pages(pages, table).to(dtype).transpose(1, 2) for pages in (keys, values))  # [1, G, S, K]
            for row in span:
                stop = self._positions[row] + 1
                start = 0 if window is None else max(0, stop - window)
                place = row - rows.start
                one = query[place].to(dtype).view(1, keys.shape[2], -1, keys.shape[3])  # [1, G, H / G, K]
                attended = scaled_dot_product_attention(one, seen_keys[:, :, start:stop], seen_values[:, :, start:stop], scale=scale)
                result[place] = attended.reshape(query.shape[1:])
        return result


class RowKVCache(TorchKVCache):
    """A `TorchKVCache` whose rows attend one by one."""

    def attend(self, batch: RaggedBatch) -> RowAttention:  # type: ignore[override]
        return RowAttention(self.pages, batch)


class FixedTiles:
    """A `LanguageModel` whose products have numbers of rows in which a row gets the same bits."""

    def __init__(self, inner: LanguageModel) -> None:
        """Finds the largest tile in which a row's place does not matter, and those that agree with it."""
        self.config: LanguageModelConfig = inner.config
        self.dtype, self.device = inner.dtype, inner.device
        self._inner = inner
        # How many rows of a tile an expert gets is a matter of their neighbours, which no trial can rule out.
        is_sparse = any(isinstance(module, Router) for module in modules_of(inner))
        self.heights = (1,) if is_sparse else self._heights()

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[N] -> [N, D]. `attend` is a `RowAttention` of the same N rows."""
        tiles = []
        for rows, height in self._tiles(len(token_ids)):
            padding = (0, height - len(rows))
            if isinstance(attend, RowAttention):
                attend.select(rows)
            ids, places = pad(token_ids[rows.start : rows.stop], padding), pad(positions[rows.start : rows.stop], padding)
            tiles.append(self._inner.hidden(ids, places, attend)[: len(rows)])
        return torch.cat(tiles)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V]."""
        tiles = []
        for rows, height in self._tiles(len(hidden)):
            padding = (0, 0, 0, height - len(rows))
            tiles.append(self._inner.logits(pad(hidden[rows.start : rows.stop], padding))[: len(rows)])
        return torch.cat(tiles)

    def _tiles(self, num_rows: int) -> Iterator[tuple[range, int]]:
        """The rows in order, each part with the height of its tile."""
        start = 0
        for height in self._cover(num_rows):
            stop = min(start + height, num_rows)
            yield range(start, stop), height
            start = stop

    def _cover(self, num_rows: int) -> list[int]:
        """Heights of tiles that hold so many rows: one that is tall enough, or the tallest that is filled and others for the rest."""
        if num_rows == 0:
            return []
        ways = [[height] for height in self.heights if height >= num_rows]
        filled = max((height for height in self.heights if height <= num_rows), default=None)
        if filled is not None:
            ways.append([filled, *self._cover(num_rows - filled)])
        return min(ways, key=lambda heights: sum(heights) + ROWS_OF_WEIGHTS * len(heights))

    @torch.inference_mode()
    def _heights(self) -> tuple[int, ...]:
        """Those in which rows keep their bits when they change places, neighbours and tiles."""
        generator = torch.Generator().manual_seed(0)
        num_rows = max(TILES + OTHER_TILES)
        ids = torch.randint(0, self.config.vocab_size, (num_rows,), generator=generator).to(self.device)
        positions = torch.randint(0, self.config.max_positions, (num_rows,), generator=generator).to(self.device)

        def rows_of(height: int, shift: int) -> tuple[Tensor, Tensor]:
            """Every row of the trial, computed `shift` places further on: [128, D], [128, V]."""
            tiles = zip(torch.split(ids.roll(shift), height), torch.split(positions.roll(shift), height), strict=True)
            hidden = [self._inner.hidden(tile, places, _see_oneself) for tile, places in tiles]
            logits = [self._inner.logits(tile) for tile in hidden]
            return torch.cat(hidden).roll(-shift, 0), torch.cat(logits).roll(-shift, 0)

        def agree(some: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> bool:
            return all(map(torch.equal, some, others))

        # One place on is enough: each place is then compared with its neighbour, the last of a tile with the first of another.
        for preferred in TILES:
            expected = rows_of(preferred, 0)
            if preferred == 1 or agree(rows_of(preferred, 1), expected):
                break
        return (preferred, *(height for height in OTHER_TILES if height != preferred and agree(rows_of(height, 1), expected)))


def _see_oneself(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """An `Attend` in which no row has a neighbour."""
    return value.repeat_interleave(query.shape[-2] // value.shape[-2], dim=-2).contiguous()
