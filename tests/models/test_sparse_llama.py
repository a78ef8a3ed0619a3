"""The sparse family: published sizes to the unit, layouts that keep every tensor, and what a layout has no words for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2MoeConfig

from tests.engine.tiny_models import MIXTRAL, OLMOE, QWEN2_MOE, SIGMOID, tiny_model
from tests.models import reference
from tripod.errors import CheckpointError, ConfigError
from tripod.models.initialize import num_parameters
from tripod.models.load import load_language_model
from tripod.models.moe import Router
from tripod.models.save import save_checkpoint
from tripod.models.sparse_llama import SparseLlamaConfig
from tripod.ops.attention import causal_attention
from tripod.ops.moe_routing import Capacity

MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6,
}  # fmt: skip
OLMOE_1B_7B: dict[str, Any] = {
    "model_type": "olmoe", "vocab_size": 50_304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
}  # fmt: skip
QWEN15_MOE: dict[str, Any] = {
    "model_type": "qwen2_moe", "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "total"),
    [(MIXTRAL_8X7B, 46_702_792_704), (OLMOE_1B_7B, 6_919_161_856), (QWEN15_MOE, 14_315_784_192)],
    ids=["Mixtral-8x7B", "OLMoE-1B-7B", "Qwen1.5-MoE-A2.7B"],
)
def test_the_published_sizes_to_the_unit(config: dict[str, Any], total: int) -> None:
    assert num_parameters(SparseLlamaConfig.from_hf(config)) == total


def test_qwens_dense_layers_and_windows_are_where_transformers_has_them() -> None:
    content = {**QWEN15_MOE, "num_hidden_layers": 6, "decoder_sparse_step": 3, "mlp_only_layers": [5], "use_sliding_window": True}
    theirs = Qwen2MoeConfig(**content, sliding_window=64, max_window_layers=4)
    config = SparseLlamaConfig.from_hf({**content, "sliding_window": 64, "max_window_layers": 4})
    assert config.dense_layers == (0, 1, 3, 4, 5)
    assert config.dense.windows == tuple(64 if kind == "sliding_attention" else None for kind in theirs.layer_types)


@pytest.mark.parametrize("config", [MIXTRAL, OLMOE, QWEN2_MOE, SIGMOID], ids=lambda config: config.model_type)
def test_what_is_saved_is_read_again_to_the_bit(config: SparseLlamaConfig, tmp_path: Path) -> None:
    model = tiny_model(config)
    save_checkpoint(model, tmp_path)
    again = load_language_model(tmp_path)
    # The precision of a router is no word of transformers' layouts; their models compute it in their own.
    assert again.config == (config if config is SIGMOID else replace(config, router=replace(config.router, precision="model")))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_our_own_layout_keeps_what_matters_in_training_alone() -> None:
    router = replace(SIGMOID.router, capacity=Capacity(factor=1.5, rule="per-assignment", group_tokens=64), jitter=0.01)
    config = replace(SIGMOID, router=router, dense_layers=(1,))
    assert SparseLlamaConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("case", ["mixtral", "olmoe"])
def test_experts_that_a_checkpoint_lacks_are_named(case: str, tmp_path: Path) -> None:
    reference.save(case, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    victim = next(name for name in tensors if ".1." in name and ".experts.3." in name)
    del tensors[victim]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=victim.replace(".", r"\.")):
        load_language_model(tmp_path)


def test_all_experts_of_a_layer_may_be_absent_or_too_few_and_that_is_told_by_their_layer(tmp_path: Path) -> None:
    reference.save("olmoe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    fewer = {name: tensor for name, tensor in tensors.items() if ".experts.15." not in name}
    save_file(fewer, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.gate_up_proj is \[15, 160, 48\], expected \[16, 160, 48\]"):
        load_language_model(tmp_path)
    none = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.experts" not in name}
    save_file(none, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        load_language_model(tmp_path)


def test_a_layout_that_has_no_words_for_a_setting_refuses_it() -> None:
    with pytest.raises(ConfigError, match=r"olmoe has no words for gate='sigmoid'"):
        replace(OLMOE, router=replace(OLMOE.router, gate="sigmoid"))
    with pytest.raises(ConfigError, match=r"mixtral has no words for is_normalized=False"):
        replace(MIXTRAL, router=replace(MIXTRAL.router, is_normalized=False))
    with pytest.raises(ConfigError, match=r"shared_size=0"):
        replace(QWEN2_MOE, shared_size=0, has_shared_gate=False)
    with pytest.raises(ConfigError, match=r"dense_layers=\(9,\)"):
        replace(QWEN2_MOE, dense_layers=(9,))


def test_a_loaded_mixtral_jitters_while_it_trains_and_repeats_with_a_generator(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(replace(MIXTRAL, router=replace(MIXTRAL.router, jitter=0.1))), tmp_path)
    model = load_language_model(tmp_path)
    tokens = torch.randint(259, (2, 12), generator=torch.Generator().manual_seed(1))

    def run(*, is_training: bool, seed: int | None = None) -> torch.Tensor:
        for router in (module for module in model.modules() if isinstance(module, Router)):
            assert router.config.jitter == 0.1
            router.generator = None if seed is None else torch.Generator().manual_seed(seed)
        return model.train(is_training).hidden(tokens, torch.arange(12).expand(2, 12), causal_attention)

    still = run(is_training=False)
    assert torch.equal(run(is_training=False, seed=1), still)
    first = run(is_training=True)
    assert not torch.equal(first, still)
    assert not torch.equal(first, run(is_training=True))
    assert torch.equal(run(is_training=True, seed=1), run(is_training=True, seed=1))
    assert not torch.equal(run(is_training=True, seed=1), run(is_training=True, seed=2))
