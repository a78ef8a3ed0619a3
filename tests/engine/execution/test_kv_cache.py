"""The pool is planned before it is taken."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import make_model
from tripod.engine.execution.kv_cache import KVCacheSpec, default_kv_tokens
from tripod.engine.execution.paged_attention import TorchKVCache
from tripod.errors import ConfigError


def test_planned_bytes_are_the_bytes_taken() -> None:
    spec = KVCacheSpec.of(make_model(), kv_tokens=100, block_size=16)
    assert spec.shape == (3, 2, 7, 16, 2, 8)  # ceil(100 / 16) = 7 blocks
    pool = TorchKVCache(spec, torch.device("cpu")).pages
    assert spec.num_bytes == pool.nbytes == 3 * 2 * 112 * 2 * 8 * 4


def test_the_default_pool_holds_sixteen_full_requests_of_a_small_model() -> None:
    assert default_kv_tokens(make_model()) == 16 * 256


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_tokens=0"):
        KVCacheSpec.of(make_model(), kv_tokens=0, block_size=16)
