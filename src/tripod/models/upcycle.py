"""Sparse upcycling: a mixture of experts that begins as a trained dense model (Komatsuzaki et al. 2022, arXiv:2212.05055)."""

# E experts

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from tripod.errors import ConfigError
from tripod.models.initialize import initial_language_model
from tripod.models.llama import Llama, LlamaConfig, LlamaMLP
from tripod.models.sparse_llama import SparseLlama, SparseLlamaConfig


@torch.no_grad()
def upcycle(dense: Llama, config: SparseLlamaConfig, seed: int) -> SparseLlama:
    """Make every expert of every sparse layer a copy of the layer's MLP; routers are drawn from N(0, 0.02), all else is as it was.

    With weights that sum to 1 (`router.is_normalized`) it computes what the dense model computes, whatever its routers choose.

    Args:
        dense: float32.
        config: of the sparse model, whose experts are as large as the MLP of the dense one.
        seed: of the routers.

    Raises:
        ConfigError: sizes differ, or the sparse model has parts that no dense one has.
    """
    expected, given = _facts(config.dense), _facts(dense.config)
    wrong = [f"{name}={expected[name]!r}, and {given[name]!r} in the dense model" for name in expected if expected[name] != given[name]]
    if config.expert_size != dense.config.intermediate_size:
        wrong.append(f"expert_size={config.expert_size}, and intermediate_size={dense.config.intermediate_size} in the dense model")
    if config.shared_size or dense.config.mlp_bias:
        wrong.append(f"shared_size={config.shared_size}, mlp_bias={dense.config.mlp_bias}; experts are copies of one MLP without biases")
    if wrong:
        raise ConfigError("the sparse model cannot begin as the dense one:\n  " + "\n  ".join(wrong))
    model = initial_language_model(config, seed, "normal-scaled")
    assert isinstance(model, SparseLlama)
    weights = dense.state_dict()
    for layer in config.sparse_layers:
        mlp = dense.blocks[layer].mlp
        assert isinstance(mlp, LlamaMLP)
        for name in ("gate", "up", "down"):
            del weights[f"blocks.{layer}.mlp.{name}.weight"]
        num_experts = config.router.num_experts
        weights[f"blocks.{layer}.mlp.experts.up"] = torch.cat((mlp.gate.weight, mlp.up.weight)).expand(num_experts, -1, -1)
        weights[f"blocks.{layer}.mlp.experts.down"] = mlp.down.weight.expand(num_experts, -1, -1)
    loaded = model.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys
    assert all(".router." in name for name in loaded.missing_keys), loaded.missing_keys
    return model


def _facts(config: LlamaConfig) -> dict[str, Any]:
    """What a model computes by, whoever it is saved as."""
    facts = asdict(config) | {"windows": config.windows if any(config.windows) else ()}
    del facts["model_type"]
    return facts
