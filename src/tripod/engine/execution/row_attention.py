"""Attention out of torch in which a row's bits depend on its own keys and its position alone.

Rows that attend to as many slots go through torch together: each attends to a multiple of `SLOTS`, those that it does not see masked.
Torch shares such a batch out over its threads, and each thread computes in a buffer that begins where the last one's ends. How that lies to
a cache line decides the last bit of what is computed there. So heads come first: torch gives each thread as many of them, with all their
rows, so that a head's rows are always the same thread's; and they all begin with a cache line.
"""

# B rows, H query heads, G key/value heads, K head size, S slots

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.ops.paged_attention import gather_pages, visible, write_pages

SLOTS = 64
_TOGETHER = 8  # requests whose gathered keys and values stay in a processor's caches
_LINE = 16  # floats: heads are filled up to whole cache lines, so that all begin with one


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that attend to as many slots, each of a request of its own or all of one."""

    places: Tensor  # [B]: in the tile
    positions: Tensor  # [B]
    tables: Tensor  # [B, M], or [1, M]
    num_slots: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window; the same in all layers

    def mask(self, window: int | None) -> Tensor:
        """[B, S], float32: what is added to the scores."""
        if window not in self._masks:
            seen = visible(self.positions + 1, self.num_slots, window)
            self._masks[window] = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))
        return self._masks[window]


class RowAttention:
    """The `Attend` of one step. In float32 at least: on CPUs torch attends with one query six times slower in bfloat16."""

    def __init__(self, pages: Tensor, batch: RaggedBatch) -> None:
        """
        Args:
            pages: [L, 2, num_blocks, block_size, G, K].
            batch: the step's tokens.
        """
        self._pages = pages
        self._batch = batch
        block_size, tables = pages.shape[3], batch.block_tables
        num_blocks = -(-SLOTS // block_size) * -(-tables.shape[1] * block_size // SLOTS)
        taken = torch.tensor([-(-span.end // block_size) for span in batch.spans], device=tables.device)
        is_own = torch.arange(num_blocks, device=tables.device) < taken[:, None]
        # Beyond its own blocks a request is given its first again, which is masked there: another's may hold what is no number.
        self._tables = torch.where(is_own, pad(tables, (0, num_blocks - tables.shape[1])), tables[:, :1])
        self._requests, self._positions = batch.requests.tolist(), batch.positions.tolist()
        # Elsewhere than on a CPU nothing is known of how a batch is shared out: there each row is a batch.
        self._together = _TOGETHER if pages.device.type == "cpu" else 1
        self.select(range(len(self._positions)))

    def select(self, rows: range) -> None:
        """The next calls are for these rows of the batch, followed by others that do not count."""
        self._rows = rows
        counts = Counter(self._requests[row] for row in rows)
        alike: dict[tuple[int, int | None], list[int]] = {}  # rows by slots, and by request where it has several
        for row in rows:
            request, num_slots = self._requests[row], (self._positions[row] // SLOTS + 1) * SLOTS
            alike.setdefault((num_slots, request if counts[request] > 1 and self._together > 1 else None), []).append(row)
        self._groups = [
            self._group(own[start : start + size], num_slots, request)
            for (num_slots, request), own in alike.items()
            for size in [self._together if request is None else len(own)]
            for start in range(0, len(own), size)
        ]

    def _group(self, rows: list[int], num_slots: int, request: int | None) -> _Group:
        places = torch.tensor(rows, device=self._pages.device)
        tables = self._tables[self._batch.requests[places] if request is None else slice(request, request + 1)]
        num_blocks = -(-num_slots // self._pages.shape[3])
        return _Group(places - self._rows.start, self._batch.positions[places], tables[:, :num_blocks], num_slots)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        keys, values = self._pages[layer, 0], self._pages[layer, 1]
        rows = self._rows
        slots = self._batch.slots[rows.start : rows.stop]
        write_pages(keys, slots, key[: len(rows)].to(keys.dtype))
        write_pages(values, slots, value[: len(rows)].to(values.dtype))
        result = torch.zeros_like(query)
        for group in self._groups:
            seen_keys, seen_values = (gather_pages(pages, group.tables)[:, : group.num_slots] for pages in (keys, values))
            attended = attend_alike(query[group.places], seen_keys, seen_values, group.mask(window), scale)
            result[group.places] = attended.to(query.dtype)
        return result


def attend_alike(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """One query for each row, all over as many slots; a row's bits do not depend on how many there are, nor on its place.

    Args:
        query: [B, H, K].
        keys: [B, S, G, K], or [1, S, G, K]: the same for all.
        values: as keys.
        mask: [B, S], float32, added to the scores.
        scale: factor on the dot products.

    Returns:
        [B, H, K], in float32 at least.
    """
    num_rows, _, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    num_threads = torch.get_num_threads() if query.device.type == "cpu" else 1
    filling = (0, -head_dim % _LINE, 0, -num_kv_heads % num_threads)

    def by_head(tensor: Tensor) -> Tensor:
        """[B, ..., G, K] -> [G, B, ..., K], with zeros behind; pad copies even where there is nothing to add."""
        filled = pad(tensor, filling) if any(filling) else tensor
        return filled.to(dtype).permute(2, 0, 1, 3)

    attended = scaled_dot_product_attention(
        by_head(query.view(num_rows, num_kv_heads, -1, head_dim).transpose(1, 2)).contiguous(),
        by_head(keys).expand(-1, num_rows, -1, -1),
        by_head(values).expand(-1, num_rows, -1, -1),
        attn_mask=mask[None, :, None],
        scale=scale,
    )
    return attended[:num_kv_heads, ..., :head_dim].transpose(0, 1).reshape(query.shape)


class RowKVCache(TorchKVCache):
    """A `TorchKVCache` whose rows attend so."""

    def attend(self, batch: RaggedBatch) -> RowAttention:  # type: ignore[override]
        return RowAttention(self.pages, batch)
