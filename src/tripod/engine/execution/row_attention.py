"""Attention out of torch in which a row's bits depend on its own keys and its position alone.

Rows that attend to as many slots go through torch together: each attends up to a multiple of `SLOTS`, what it does not see masked. On a CPU
torch shares such a batch out over its threads, and each computes in a buffer that begins where the last one's ends. How that lies to a
cache line decides the last bit of what is computed there, so a row must meet the same buffer always, or one that lies alike. There are two
ways (`_by_head`): heads come first, so that each thread gets as many whole heads, with all their rows; or, where heads cannot be dealt out
so, buffers are filled up to whole cache lines.
"""

# B rows, H query heads, G key/value heads, Q = H / G, K head size, S slots

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.ops.paged_attention import TOGETHER, gather_pages, visible, write_pages

SLOTS = 64
_LINE = 16  # floats: MKL promises the same bits for what begins with a cache line
_QUERIES = 8  # with multiples of so many, a thread's buffer takes whole cache lines


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that attend to as many slots, each of a request of its own or all of one."""

    places: Tensor  # [B]: in the tile
    positions: Tensor  # [B]
    tables: Tensor  # [B, M], or [1, M]
    num_slots: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window; the same in all layers

    def first_slot(self, window: int | None) -> int:
        """A multiple of `SLOTS` that lies before all that any row with so many slots sees."""
        return 0 if window is None else max(0, (self.num_slots - SLOTS + 1 - window) // SLOTS * SLOTS)

    def mask(self, window: int | None) -> Tensor:
        """[B, S], float32: what is added to the scores from the first slot on."""
        if window not in self._masks:
            seen = visible(self.positions + 1, self.num_slots, window)[:, self.first_slot(window) :]
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
        blocks_of_slots = -(-SLOTS // block_size)
        num_blocks = blocks_of_slots * -(-tables.shape[1] * block_size // SLOTS)  # enough for whole multiples of SLOTS
        taken = torch.tensor([-(-span.end // block_size) for span in batch.spans], device=tables.device)
        is_own = torch.arange(num_blocks, device=tables.device) < taken[:, None]
        # Beyond its own blocks a request is given its first again, which is masked there: another's may hold what is no number.
        self._tables = torch.where(is_own, pad(tables, (0, num_blocks - tables.shape[1])), tables[:, :1])
        self._requests, self._positions = batch.requests.tolist(), batch.positions.tolist()
        self._rows = range(len(self._positions))
        self._groups: list[_Group] | None = None

    def select(self, rows: range) -> None:
        """The next calls are for these rows of the batch, followed by others that do not count."""
        self._rows, self._groups = rows, None

    def _grouped(self) -> list[_Group]:
        counts = Counter(self._requests[row] for row in self._rows)
        alike: dict[tuple[int, int | None], list[int]] = {}  # rows by slots, and by request where it has several
        for row in self._rows:
            request, num_slots = self._requests[row], (self._positions[row] // SLOTS + 1) * SLOTS
            alike.setdefault((num_slots, request if counts[request] > 1 else None), []).append(row)
        return [
            self._group(own[start : start + size], num_slots, request)
            for (num_slots, request), own in alike.items()
            for size in [TOGETHER if request is None else len(own)]
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
        if self._groups is None:
            self._groups = self._grouped()
        slots = self._batch.slots[rows.start : rows.stop]
        write_pages(keys, slots, key[: len(rows)].to(keys.dtype))
        write_pages(values, slots, value[: len(rows)].to(values.dtype))
        result = torch.zeros_like(query)
        for group in self._groups:
            seen = slice(group.first_slot(window), group.num_slots)
            seen_keys, seen_values = (gather_pages(pages, group.tables)[:, seen] for pages in (keys, values))
            attended = attend_alike(query[group.places], seen_keys, seen_values, group.mask(window), scale)
            result[group.places] = attended.to(query.dtype)
        return result


def attend_alike(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """One query for each row, all over as many slots. A row's bits do not depend on how many rows there are, nor on its place.

    They depend on torch's number of threads; an OpenMP that gives it fewer than it asks for (OMP_DYNAMIC, OMP_THREAD_LIMIT) breaks this.
    Of another device than a CPU nothing is known: there each row goes by itself.

    Args:
        query: [B, H, K].
        keys: [B, S, G, K], or [1, S, G, K]: the same for all.
        values: as keys.
        mask: [B, S], added to the scores.
        scale: factor on the dot products.

    Returns:
        [B, H, K], in float32 at least.
    """
    if query.device.type != "cpu" and len(query) > 1:
        own = [slice(row, row + 1) for row in range(len(query))]
        of = own if len(keys) > 1 else [slice(None)] * len(own)
        return torch.cat([attend_alike(query[i], keys[j], values[j], mask[i], scale) for i, j in zip(own, of, strict=True)])
    num_rows, _, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    grouped = query.view(num_rows, num_kv_heads, -1, head_dim).transpose(1, 2)  # [B, Q, G, K]
    num_queries = grouped.shape[1]
    are_heads_dealt_out = num_kv_heads % torch.get_num_threads() == 0
    more_queries = 0 if are_heads_dealt_out else -num_queries % _QUERIES
    dtype = torch.promote_types(query.dtype, torch.float32)
    attended = scaled_dot_product_attention(
        _by_head(grouped, dtype, more_queries).contiguous(),
        _by_head(keys, dtype).expand(-1, num_rows, -1, -1),
        _by_head(values, dtype).expand(-1, num_rows, -1, -1),
        attn_mask=mask.to(dtype)[None, :, None],
        scale=scale,
    )  # [G, B, Q, K]
    return attended[:, :, :num_queries, :head_dim].transpose(0, 1).reshape(query.shape)


def _by_head(tensor: Tensor, dtype: torch.dtype, more: int = 0) -> Tensor:
    """[B, N, G, K] -> [G, B, N + more, K up to whole cache lines], zeros behind. (pad copies even where there is nothing to add.)"""
    filling = (0, -tensor.shape[-1] % _LINE, 0, 0, 0, more)
    return (pad(tensor, filling) if any(filling) else tensor).to(dtype).permute(2, 0, 1, 3)


class RowKVCache(TorchKVCache):
    """A `TorchKVCache` whose rows keep their bits."""

    def attend(self, batch: RaggedBatch) -> RowAttention:  # type: ignore[override]
        return RowAttention(self.pages, batch)
