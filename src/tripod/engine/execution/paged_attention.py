"""Keys and values in torch's tensors: new ones go into the pool, then each token attends to its own request's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tripod.engine.execution.kv_cache import KVCacheSpec
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.ops.paged_attention import paged_chunk, paged_decode, visible, write_pages


class TorchKVCache:
    """The `KVCache` that runs wherever torch does."""

    def __init__(self, spec: KVCacheSpec, device: torch.device) -> None:
        """Takes the memory of the pool."""
        self.spec = spec
        # Zeros: a masked slot is multiplied by zero, which only removes finite numbers.
        self.pages = torch.zeros(spec.shape, dtype=spec.dtype, device=device)

    def attend(self, batch: RaggedBatch) -> PagedAttention:
        return PagedAttention(self.pages, batch)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        if copies:
            sources, targets = torch.tensor(copies, device=self.pages.device).unbind(1)
            self.pages[:, :, targets] = self.pages[:, :, sources]

    def clear(self, block_ids: Sequence[int], start: int, num_tokens: int) -> None:
        size = self.spec.block_size
        for token in range(start, start + num_tokens):
            self.pages[:, :, block_ids[token // size], token % size] = 0


class PagedAttention:
    """Prefill chunks and decodes of one ragged batch, in one call a layer.

    Decodes are computed together, chunks one request after another. No row sees another request's keys.
    """

    def __init__(self, kv_cache: Tensor, batch: RaggedBatch) -> None:
        """
        Args:
            kv_cache: [L, 2, num_blocks, block_size, G, K].
            batch: the step's tokens.
        """
        self._kv_cache = kv_cache
        self._batch = batch
        self._chunks = [(row, span) for row, span in enumerate(batch.spans) if span.num_tokens > 1]
        decodes = [(row, span) for row, span in enumerate(batch.spans) if span.num_tokens == 1]
        lengths = [span.end for _, span in decodes]
        self._num_slots = max(lengths, default=0)  # of the longest decode; 0: none
        self._is_padded = min(lengths, default=0) != self._num_slots
        num_blocks = -(-self._num_slots // kv_cache.shape[3])
        device = kv_cache.device
        self._context_lens = torch.tensor(lengths, device=device)
        self._decode_rows: Tensor | None = None  # all rows, in order
        self._tables = batch.block_tables[:, :num_blocks]
        if self._chunks:
            self._decode_rows = torch.tensor([span.rows.start for _, span in decodes], dtype=torch.int64, device=device)
            self._tables = self._tables[torch.tensor([row for row, _ in decodes], dtype=torch.int64, device=device)]
        self._seen: dict[int | None, Tensor | None] = {}  # by window; the same in all layers

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        keys, values = self._kv_cache[layer, 0], self._kv_cache[layer, 1]
        write_pages(keys, self._batch.slots, key.to(keys.dtype))
        write_pages(values, self._batch.slots, value.to(values.dtype))
        if self._decode_rows is None:
            return self._decode(query, keys, values, scale, window)
        result = torch.empty_like(query)
        for row, span in self._chunks:
            table = self._batch.block_tables[row, : -(-span.end // keys.shape[1])]
            result[span.rows] = paged_chunk(query[span.rows], keys, values, table, start=span.start, scale=scale, window=window)
        if self._num_slots:
            attended = self._decode(query.index_select(0, self._decode_rows), keys, values, scale, window)
            result.index_copy_(0, self._decode_rows, attended)
        return result

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        num_slots = self._num_slots
        if window not in self._seen:
            slides = window is not None and window < num_slots
            sees_all = not slides and not self._is_padded
            self._seen[window] = None if sees_all else visible(self._context_lens, num_slots, window)
        return paged_decode(query, keys, values, self._tables, num_slots=num_slots, seen=self._seen[window], scale=scale)
