"""The native kernels as a route: packed weights, keys and values in the kernels' layout, and a pool of threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tripod.engine.execution.kv_cache import KVCache, KVCacheDtype, KVCacheSpec, kv_dtype_of
from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.models.architectures import Decoder
from tripod.models.expert_cache import ExpertCache
from tripod.models.language_model import LanguageModel
from tripod.models.native_blocks import NativeModel, pack_native
from tripod.models.pack import PackedModel
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu import library, threads
from tripod.ops.kernels.cpu.paged_attention import KVPool, why_no_pool
from tripod.ops.kernels.cpu.pool_attention import PoolAttention
from tripod.ops.kernels.cpu.rows import argmax
from tripod.ops.linear import WeightFormat


def why_not(model: LanguageModel, weight_format: WeightFormat, block_size: int, kv_cache_dtype: KVCacheDtype | None = None) -> str | None:
    """Why the kernels cannot run this model here; None where they can."""
    config = model.config
    return library.why_not() or why_no_pool(
        block_size=block_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=kv_dtype_of(weight_format, kv_cache_dtype),
    )


class NativeRoute:
    """Whatever a row is computed with, its sums are made in one order: batch-invariant as it is."""

    is_batch_invariant = True

    def __init__(self, weight_format: WeightFormat, expert_cache: int | None = None, kv_cache_dtype: KVCacheDtype | None = None) -> None:
        self.expert_cache = None if expert_cache is None else ExpertCache(expert_cache)
        self.kv_dtype = kv_dtype_of(weight_format, kv_cache_dtype)
        self.weight_format = weight_format
        self._num_threads = min(threads.default_num_threads(), torch.get_num_threads())  # who limits torch limits this as well
        self.name = f"native {library.load()} ({self._num_threads} threads)"

    def pack(self, model: LanguageModel, checkpoint: Path | None = None) -> PackedModel:
        return pack_native(cast("Decoder", model), self.weight_format, checkpoint, self.expert_cache)

    def allocate(self, spec: KVCacheSpec) -> KVCache:
        return NativeKVCache(spec)

    def start_thread(self) -> None:
        """The kernels' threads do the work; torch's would only take the processors from them."""
        torch.get_num_threads()  # the first look of a thread sets its number; only then does another one stay
        torch.set_num_threads(1)
        threads.set_num_threads(self._num_threads)

    def hidden(self, model: LanguageModel, batch: RaggedBatch, attend: Attend, rows: Sequence[int] | None) -> Tensor:
        return cast(NativeModel, model).hidden(batch.token_ids, batch.positions, attend, rows)

    def argmax(self, logits: Tensor) -> Tensor:
        return argmax(logits)

    def greedy(self, model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return cast(NativeModel, model).greedy(hidden)

    def step(self) -> AbstractContextManager[None]:
        return threads.held_awake()


class NativeKVCache:
    """A `KVCache` in the kernels' layout."""

    def __init__(self, spec: KVCacheSpec) -> None:
        """Takes the memory of the pool."""
        self.spec = spec
        self.pool = KVPool.allocate(
            num_layers=spec.num_layers,
            num_blocks=spec.num_blocks,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=spec.dtype,
        )

    def attend(self, batch: RaggedBatch) -> PoolAttention:
        return PoolAttention(self.pool, batch.slots, batch.requests, batch.positions, batch.block_tables)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        if copies:
            self.pool.copy_blocks(copies)

    def clear(self, block_ids: Sequence[int], start: int, num_tokens: int) -> None:
        size = self.spec.block_size
        slots = torch.tensor(
            [block_ids[token // size] * size + token % size for token in range(start, start + num_tokens)], dtype=torch.int64
        )
        nothing = torch.zeros(num_tokens, self.spec.num_kv_heads, self.spec.head_dim)
        for layer in range(self.spec.num_layers):
            self.pool.write(layer, nothing, nothing, slots)
