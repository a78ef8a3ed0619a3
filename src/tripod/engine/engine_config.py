"""What an engine is told when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tripod.engine.execution.kv_cache import KVCacheDtype
from tripod.engine.execution.route import Kernels
from tripod.engine.policy.config import CHUNK_BESIDE_DECODES
from tripod.errors import ConfigError
from tripod.ops.linear import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes of an engine and how it computes; checked when it is built.

    Raises:
        ConfigError: the pool is asked for in tokens and in bytes at once, an expert cache that holds nothing, or an unknown kv_cache_dtype.
    """

    block_size: int = 16  # tokens in a block of the KV pool
    kv_tokens: int | None = None  # the pool in tokens; None: 16 full-length requests, or what a quarter of the free memory holds
    kv_bytes: int | None = None  # the pool in bytes, instead
    max_num_requests: int = 64  # running at once
    max_batch_tokens: int = 512  # computed in one step: decodes and prompt chunks together
    # Tokens of one prompt in a step that others decode in, and one more for each of them. None, and any GPU, where a
    # step costs the same for one token and for hundreds: no bound.
    chunk_beside_decodes: int | None = CHUNK_BESIDE_DECODES
    max_num_waiting: int = 4096  # queued; more are refused as overload
    max_waiting_tokens: int | None = None  # the same in tokens; None: no bound but the number of requests
    max_wait_s: float | None = None  # a request that would wait longer, as far as can be foreseen, is refused; None: no bound
    prefix_cache: bool = True  # reuse the keys and values of beginnings that were computed before
    fair: bool = True  # tenants share the engine equally; False: one queue for all
    aging_s: float | None = 60.0  # so long a wait makes up for one level of priority; None: strict priorities, which may starve
    weight_format: WeightFormat | None = None  # of linear layers; None: as the model's dtype. See `tripod.ops.linear_formats`
    # "int8": keys and values in whole numbers, with a scale for each head of each token: a quarter of float32's memory, half of bfloat16's.
    # None: as precise as the weights. Native kernels only.
    kv_cache_dtype: KVCacheDtype | None = None
    kernels: Kernels = "auto"  # "native" where they run, else "torch"; or insist on one
    # Experts of a sparse model kept in memory, of all layers together; the others stay in the file of packed weights. None: as the system
    # maps that file. Native kernels only.
    expert_cache: int | None = None
    batch_invariant: bool = False  # bitwise the same logits for a token whatever else is in its step; costs time on the torch route
    log: Path | None = None  # a replay log is written there; see `tripod.engine.replay`

    def __post_init__(self) -> None:
        if self.expert_cache is not None and self.expert_cache < 1:
            raise ConfigError(f"expert_cache={self.expert_cache} holds no expert; give at least as many as a layer has, or None for all")
        if self.kv_cache_dtype not in (None, "int8"):
            raise ConfigError(
                f"kv_cache_dtype={self.kv_cache_dtype!r} is unknown; give 'int8', or None for keys and values as precise as the weights"
            )
        if self.kv_tokens is not None and self.kv_bytes is not None:
            raise ConfigError(f"the KV pool is asked for as kv_tokens={self.kv_tokens} and kv_bytes={self.kv_bytes}; give one of the two")
