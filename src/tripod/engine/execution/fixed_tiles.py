"""Batch invariance out of torch: a model computed in tiles of fixed numbers of rows, each row attending by itself.

Torch chooses how it sums by the shape of a whole batch, so a row's bits change with its neighbours. In a tile of a fixed shape they
cannot, as long as a row's place within the tile does not matter either. That is tried out when the engine is built; where it matters,
the tile is made smaller, down to one row, where nothing is left that could differ. Tiles of other heights are used beside it if their
rows get the same bits in that trial: tall ones for prompts, low ones for a few streams.
"""

# N tokens of the step, D hidden size, V vocabulary

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from tripod.engine.execution.row_attention import RowAttention
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.models.moe import Router
from tripod.models.pack import modules_of
from tripod.ops.attention import Attend

TILES = (32, 16, 8, 4, 2, 1)  # rows, by preference
OTHER_TILES = (128, 64, 16, 8)
ROWS_OF_WEIGHTS = 8  # reading the weights for one more tile takes as long as computing so many more rows


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

        def tile(height: int, shift: int, number: int) -> tuple[Tensor, Tensor]:
            """Of the trial's rows, each computed `shift` places further on: [height, D], [height, V]."""
            own = slice(number * height, (number + 1) * height)
            hidden = self._inner.hidden(ids.roll(shift)[own], positions.roll(shift)[own], _see_oneself)
            return hidden, self._inner.logits(hidden)

        def agree(height: int, preferred: int) -> bool:
            """Row by row: at the first that differs, no more is computed."""
            expected = functools.cache(functools.partial(tile, preferred, 0))
            for number in range(num_rows // height):
                found = tile(height, 1, number)
                for place in range(height):
                    other, other_place = divmod((number * height + place - 1) % num_rows, preferred)
                    if not all(torch.equal(a[place], b[other_place]) for a, b in zip(found, expected(other), strict=True)):
                        return False
            return True

        # One place on is enough: each place is then compared with its neighbour, the last of a tile with the first of another.
        preferred = next(height for height in TILES if height == 1 or agree(height, height))
        return (preferred, *(height for height in OTHER_TILES if height != preferred and agree(height, preferred)))


def _see_oneself(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """An `Attend` in which no row has a neighbour."""
    return value.repeat_interleave(query.shape[-2] // value.shape[-2], dim=-2).contiguous()
