"""An upcycled model begins as the dense one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tripod.errors import ConfigError
from tripod.models.initialize import random_language_model
from tripod.models.llama import Llama, LlamaConfig
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.models.upcycle import upcycle
from tripod.ops.attention import causal_attention
from tripod.ops.moe_routing import RouterConfig
from tripod.ops.rope import RopeConfig

DENSE = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=32,
    rope=RopeConfig(rotary_dim=8),
)
SPARSE = SparseLlamaConfig(dense=DENSE, router=RouterConfig(num_experts=8, top_k=2, is_normalized=True), expert_size=48, dense_layers=(0,))


def dense_model() -> Llama:
    model = random_language_model(DENSE, 3)
    assert isinstance(model, Llama)
    return model


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with torch.no_grad():
        return model.logits(model.hidden(tokens, positions, causal_attention))  # type: ignore[operator, no-any-return]


def test_with_weights_that_sum_to_one_the_upcycled_model_computes_what_the_dense_one_does() -> None:
    tokens = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(0))
    expected = logits(dense_model(), tokens)
    found = logits(upcycle(dense_model(), SPARSE, seed=1), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32: two halves of one sum, added
    raw = replace(SPARSE, router=replace(SPARSE.router, is_normalized=False))
    assert (logits(upcycle(dense_model(), raw, seed=1), tokens) - expected).abs().max() > 1e-2  # the law is that of the weights


def test_routers_are_drawn_from_the_seed_and_differ_between_layers() -> None:
    one, same, other = (upcycle(dense_model(), SPARSE, seed).state_dict() for seed in (1, 1, 2))
    routers = [name for name in one if name.endswith("router.weight")]
    assert len(routers) == 2
    assert all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in routers)
    assert not torch.equal(one[routers[0]], one[routers[1]])
    assert one[routers[0]].std().item() == pytest.approx(0.02, rel=0.2)  # of 256 numbers: 4 standard errors


def test_a_sparse_model_of_other_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match="expert_size=24, and intermediate_size=48 in the dense model"):
        upcycle(dense_model(), replace(SPARSE, expert_size=24), seed=1)
    with pytest.raises(ConfigError, match="num_heads=2, and 4 in the dense model"):
        upcycle(dense_model(), replace(SPARSE, dense=replace(DENSE, num_heads=2)), seed=1)
