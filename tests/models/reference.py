"""Tiny random checkpoints, made and answered by transformers: the independent implementation that ours is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SIZES_BYTES, GROUPED_BYTES = (
    {**SIZES, "vocab_size": 259},
    {**GROUPED, "vocab_size": 259},
)  # a token for each byte: the engine wants a tokenizer
SMALL_EXPERTS: dict[str, Any] = {"num_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 24}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
PARTIAL_ROPE = {**PLAIN_ROPE, "partial_rotary_factor": 0.25}

CASES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt_neox parallel": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, rope_parameters={**PARTIAL_ROPE})),
    "gpt_neox sequential": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, use_parallel_residual=False, hidden_act="gelu_new")),
    "gpt_neox tied, whole heads rotated, no attention bias": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SIZES, tie_word_embeddings=True, attention_bias=False, rope_parameters={**PLAIN_ROPE, "partial_rotary_factor": 1.0})
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "llama with scaled rope": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, rope_parameters={**LLAMA3_ROPE})),
    "llama with yarn": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, rope_parameters={**YARN_ROPE})),
    "llama with biases and its own head size": lambda: LlamaForCausalLM(
        LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, head_dim=12)
    ),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=7)),
    "mistral without a window": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "qwen2 tied, a window from layer 1 on": lambda: Qwen2ForCausalLM(
        Qwen2Config(**GROUPED, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=16)),
    "qwen3 tied with attention bias": lambda: Qwen3ForCausalLM(
        Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True, attention_bias=True)
    ),
}

SPARSE_CASES: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**GROUPED_BYTES, sliding_window=9)),
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**SIZES_BYTES, num_experts=16, num_experts_per_tok=4, eos_token_id=None)),
    "olmoe grouped, clipped, with biases": lambda: OlmoeForCausalLM(
        OlmoeConfig(
            **GROUPED_BYTES, num_experts=8, num_experts_per_tok=3, clip_qkv=0.7, norm_topk_prob=True, attention_bias=True, eos_token_id=None
        )
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**GROUPED_BYTES, **SMALL_EXPERTS, shared_expert_intermediate_size=40, use_sliding_window=True, sliding_window=6)
    ),
    "qwen3_moe with a dense layer": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**GROUPED_BYTES, **SMALL_EXPERTS, head_dim=16, norm_topk_prob=True, mlp_only_layers=[0], attention_bias=True)
    ),
}
CASES |= SPARSE_CASES


def make(case: str) -> PreTrainedModel:
    """The model of a case; every parameter is moved off its start, so that no bias is zero and no norm is one."""
    torch.manual_seed(20)
    model = CASES[case]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model


def save(case: str, folder: Path) -> PreTrainedModel:
    """Write a case's checkpoint as transformers does, in safetensors."""
    model = make(case)
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def logits(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """[B, T] -> [B, T, V]."""
    return model(token_ids).logits


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompts: Tensor, num_tokens: int) -> Tensor:
    """Decode with transformers' own loop and cache: [B, T] -> [B, T + num_tokens]."""
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
