"""Tiny models of all architectures, of sizes that divide by nothing convenient."""

from __future__ import annotations

from dataclasses import replace

import torch

from tripod.models.architectures import Decoder, DecoderConfig
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.llama import LlamaConfig
from tripod.models.openmoe import OpenMoEConfig
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.ops.moe_routing import RouterConfig
from tripod.ops.rope import RopeConfig

NEOX = GPTNeoXConfig(
    vocab_size=259, hidden_size=60, intermediate_size=140, num_layers=2, num_heads=5, max_positions=160, rope=RopeConfig(rotary_dim=6)
)
SERIAL_NEOX = GPTNeoXConfig(
    vocab_size=259, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, max_positions=160, rope=RopeConfig(rotary_dim=16),
    is_parallel=False, hidden_act="relu", is_tied=True,
)  # fmt: skip
QWEN = LlamaConfig(
    model_type="qwen2", vocab_size=259, hidden_size=72, intermediate_size=100, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=12,
    max_positions=160, rope=RopeConfig(rotary_dim=12), qkv_bias=True, is_tied=True,
)  # fmt: skip
QWEN3 = LlamaConfig(
    model_type="qwen3", vocab_size=259, hidden_size=48, intermediate_size=96, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8,
    max_positions=160, rope=RopeConfig(rotary_dim=8), qk_norm=True, windows=(None, 9),
)  # fmt: skip
BIASED_LLAMA = LlamaConfig(
    vocab_size=259, hidden_size=64, intermediate_size=80, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16,
    max_positions=160, rope=RopeConfig(rotary_dim=16), qkv_bias=True, output_bias=True, mlp_bias=True,
)  # fmt: skip
MIXTRAL = SparseLlamaConfig(
    model_type="mixtral", dense=replace(QWEN, model_type="mistral", qkv_bias=False, is_tied=False, windows=(11, 11)),
    router=RouterConfig(num_experts=5, top_k=2, is_normalized=True, precision="model"), expert_size=52,
)  # fmt: skip
OLMOE = SparseLlamaConfig(
    model_type="olmoe", dense=replace(QWEN3, model_type="llama", is_qk_norm_joint=True, qkv_clip=2.5, windows=()),
    router=RouterConfig(num_experts=14, top_k=6, precision="model"), expert_size=20,
)  # fmt: skip
QWEN2_MOE = SparseLlamaConfig(
    model_type="qwen2_moe", dense=QWEN, router=RouterConfig(num_experts=7, top_k=3), expert_size=36, shared_size=44, has_shared_gate=True,
    dense_layers=(0,),
)  # fmt: skip
SIGMOID = SparseLlamaConfig(
    dense=BIASED_LLAMA, expert_size=33, shared_size=30,
    router=RouterConfig(num_experts=9, top_k=4, gate="sigmoid", is_normalized=True, scale=1.5, has_selection_bias=True),
)  # fmt: skip
OPENMOE = OpenMoEConfig(
    vocab_size=259, hidden_size=72, intermediate_size=44, num_layers=2, num_heads=5, head_dim=16, sparse_interval=2, max_positions=160,
    router=RouterConfig(num_experts=6, top_k=2),
)  # fmt: skip
SPARSE = {"mixtral": MIXTRAL, "olmoe": OLMOE, "qwen2_moe": QWEN2_MOE, "sigmoid": SIGMOID, "openmoe": OPENMOE}


def tiny_model(config: DecoderConfig, seed: int = 3) -> Decoder:
    """Random weights, scaled up so that choices depend on the context, and biases that are not zero."""
    model = random_language_model(config, seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.mul_(3.0 if config is not OPENMOE or "attention" not in name else 1.0)  # whose scores are not scaled down
        elif name.endswith("bias"):
            parameter.add_(0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("selection_bias"):
            buffer.copy_(torch.linspace(-0.2, 0.2, len(buffer)))
    return model
