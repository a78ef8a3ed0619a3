"""Tiny models of both architectures, of sizes that divide by nothing convenient."""

from __future__ import annotations

from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.llama import Llama, LlamaConfig
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


def tiny_model(config: GPTNeoXConfig | LlamaConfig, seed: int = 3) -> GPTNeoX | Llama:
    """Random weights, scaled up so that choices depend on the context, and biases that are not zero."""
    model = random_language_model(config, seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.mul_(3.0)
        elif name.endswith("bias"):
            parameter.add_(0.1)
    return model
