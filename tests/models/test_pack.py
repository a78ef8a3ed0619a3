"""A packed model is the same model: near it by what its format rounds, and the original is left alone."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import Tensor

from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.llama import LlamaConfig
from tripod.models.pack import pack
from tripod.ops.attention import causal_attention
from tripod.ops.linear import WeightFormat
from tripod.ops.rope import RopeConfig
from tripod.ops.torch_linear import pack_torch_linear

NEOX = GPTNeoXConfig(
    vocab_size=259, hidden_size=64, intermediate_size=256, num_layers=2, num_heads=4, max_positions=64, rope=RopeConfig(rotary_dim=4)
)
QWEN = LlamaConfig(
    model_type="qwen2", vocab_size=259, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    max_positions=64, rope=RopeConfig(rotary_dim=16), qkv_bias=True, is_tied=True,
)  # fmt: skip


def logits_of(model: LanguageModel) -> Tensor:
    token_ids = torch.randint(0, 259, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.logits(model.hidden(token_ids, torch.arange(20).expand(2, -1), causal_attention))


@pytest.mark.parametrize("config", [NEOX, QWEN], ids=["gpt-neox", "qwen2, tied"])
@pytest.mark.parametrize(("weight_format", "tolerance"), [("f32", 1e-5), ("bf16", 2e-2), ("int8", 5e-2)])
def test_a_packed_model_gives_the_logits_of_the_plain_one(
    config: GPTNeoXConfig | LlamaConfig, weight_format: WeightFormat, tolerance: float
) -> None:
    model = random_language_model(config, 3)
    plain = logits_of(model)
    packed = logits_of(pack(model, functools.partial(pack_torch_linear, weight_format=weight_format)))
    assert float((packed - plain).abs().max() / plain.abs().max()) < tolerance
    assert weight_format == "f32" or not torch.equal(packed, plain), "nothing was packed"
    assert torch.equal(logits_of(model), plain), "the model itself was changed"


def test_the_unpacked_weights_go_with_the_model() -> None:
    model = random_language_model(NEOX, 3)
    weight = weakref.ref(model.blocks[0].mlp.up.weight)  # type: ignore[union-attr,arg-type]
    packed = pack(model, functools.partial(pack_torch_linear, weight_format="int8"))
    shared = packed._inner.embedding.weight  # type: ignore[attr-defined]
    assert shared is model.embedding.weight, "tensors that are not packed are shared, not copied"
    del model
    gc.collect()
    assert weight() is None
    assert packed.num_bytes == sum(n * (k + 4) for n, k in [(192, 64), (64, 64), (256, 64), (64, 256)] * 2 + [(259, 64)])
