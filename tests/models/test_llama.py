"""What config.json means for each member of the Llama family, where it is silent or says too much."""

from __future__ import annotations

from typing import Any

import pytest

from tripod.models.llama import LlamaConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def read(model_type: str, **values: Any) -> LlamaConfig:
    return LlamaConfig.from_hf({**SIZES, "model_type": model_type, **values})


@pytest.mark.parametrize(("model_type", "has_bias"), [("llama", True), ("qwen3", True), ("mistral", False), ("qwen2", False)])
def test_attention_bias_counts_only_where_the_architecture_has_the_switch(model_type: str, has_bias: bool) -> None:
    assert read(model_type, attention_bias=True).output_bias == has_bias


def test_a_qwen_slides_from_a_layer_on_or_where_the_layers_are_listed() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 7}
    assert read("qwen2", **sliding, max_window_layers=1).windows == (None, 7, 7)
    assert read("qwen2", **sliding).windows == (None, None, None)  # from the 28th on, and there are three
    assert read("qwen3", **sliding, layer_types=["sliding_attention", "full_attention", "sliding_attention"]).windows == (7, None, 7)
    assert read("qwen2", sliding_window=7).windows == ()
