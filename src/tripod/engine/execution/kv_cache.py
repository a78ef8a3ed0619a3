"""The pool of keys and values: planned first, then allocated once, and how a step uses it."""

# L layers, G key/value heads, K head size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import torch

from tripod.engine.execution.ragged_batch import RaggedBatch
from tripod.errors import ConfigError
from tripod.models.language_model import LanguageModel
from tripod.ops.attention import Attend
from tripod.ops.linear import WeightFormat

KVCacheDtype: TypeAlias = Literal["int8"]
DEFAULT_SEQUENCES = 16  # of full length
DEFAULT_MEMORY_SHARE = 0.25  # of what is free


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheSpec:
    """Shape and type of the pool, from which its bytes are known before any is taken."""

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: LanguageModel, *, kv_tokens: int, block_size: int, dtype: torch.dtype | None = None) -> KVCacheSpec:
        """A pool of whole blocks for at least `kv_tokens` tokens of this model, in its dtype or another.

        Raises:
            ConfigError: the pool would hold nothing.
        """
        if block_size < 1 or kv_tokens < 1:
            raise ConfigError(
                f"a KV pool of kv_tokens={kv_tokens} in blocks of block_size={block_size} holds nothing; give at least 1 of each"
            )
        return cls(
            num_layers=model.config.num_layers,
            num_blocks=-(-kv_tokens // block_size),
            block_size=block_size,
            num_kv_heads=model.config.num_kv_heads,
            head_dim=model.config.head_dim,
            dtype=dtype or model.dtype,
        )

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """[L, 2, num_blocks, block_size, G, K]; of the 2, keys come first."""
        return (self.num_layers, 2, self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim)

    @property
    def bytes_per_token(self) -> int:
        scale = 4 if self.dtype == torch.int8 else 0  # float32, of each head's key and of its value
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * self.dtype.itemsize + scale)

    @property
    def num_bytes(self) -> int:
        return self.bytes_per_token * self.num_blocks * self.block_size


class KVCache(Protocol):
    """Keys and values in blocks, in a layout of its own. Which block is whose, the policy decides."""

    @property
    def spec(self) -> KVCacheSpec: ...

    def attend(self, batch: RaggedBatch) -> Attend:
        """For one step: writes the new keys and values of each layer, then lets each token see its own request's."""
        ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers: (source, target) each; no target is a source."""
        ...

    def clear(self, block_ids: Sequence[int], start: int, num_tokens: int) -> None:
        """Zero what stands for the tokens start .. start + num_tokens of the request that owns these blocks."""
        ...


def kv_dtype_of(weight_format: WeightFormat, kv_cache_dtype: KVCacheDtype | None = None) -> torch.dtype:
    """Of the native kernels' pool: keys and values are rounded no more than what made them, unless it is asked for."""
    if kv_cache_dtype == "int8":
        return torch.int8
    return torch.float32 if weight_format == "f32" else torch.bfloat16


def default_kv_tokens(model: LanguageModel, dtype: torch.dtype | None = None) -> int:
    """Tokens for a few full-length requests, or what a share of the free memory holds, if that is less; one block at least."""
    wanted = DEFAULT_SEQUENCES * model.config.max_positions
    per_token = KVCacheSpec.of(model, kv_tokens=1, block_size=1, dtype=dtype).bytes_per_token
    return max(1, min(wanted, int(DEFAULT_MEMORY_SHARE * free_bytes(model.device)) // per_token))


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on a device without pushing others out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 1024**3  # where the system does not tell: what a laptop can spare
