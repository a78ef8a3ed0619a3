"""Rotary embedding against transformers' table of its kinds, and against rotation of the plane done in complex numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tripod.errors import ConfigError, ShapeError
from tripod.models.rope_config import rope_from_hf, rope_to_hf
from tripod.ops.rope import Llama3Scaling, Rope, RopeConfig, YarnScaling, inverse_frequencies, rotate

KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn, own ramp": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    "yarn, own temperature": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "attention_factor": 1.25},
    "yarn of DeepSeek": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_frequencies_are_those_of_transformers(kind: str, fraction: float) -> None:
    parameters = {**KINDS[kind], "rope_theta": 50_000.0, "partial_rotary_factor": fraction}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=2048, rope_parameters={**parameters})
    expected, expected_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    rope = rope_from_hf({"rope_parameters": parameters}, head_dim=64, max_positions=2048)
    frequencies, factor = inverse_frequencies(rope)
    torch.testing.assert_close(frequencies, expected, rtol=1e-5, atol=0.0)  # float32, another order of operations
    assert factor == pytest.approx(expected_factor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_survives_being_written_and_read(kind: str) -> None:
    rope = rope_from_hf({"rope_parameters": {**KINDS[kind], "rope_theta": 50_000.0}}, head_dim=64, max_positions=2048)
    assert rope_from_hf({"rope_parameters": rope_to_hf(rope, head_dim=64)}, head_dim=64, max_positions=2048) == rope


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'longrope'.*supported: default, linear, dynamic, llama3, yarn"):
        rope_from_hf({"rope_scaling": {"type": "longrope", "factor": 2.0}}, head_dim=64, max_positions=2048)


def test_a_scaling_without_its_number_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'linear'.*lacks 'factor'"):
        rope_from_hf({"rope_scaling": {"type": "linear"}}, head_dim=64, max_positions=2048)


def test_an_odd_rotary_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="rotary_dim=15"):
        RopeConfig(rotary_dim=15)


def test_crossed_llama3_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="low_freq_factor=4"):
        Llama3Scaling(factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0, original_max_positions=256)


def test_each_plane_turns_as_a_complex_number_does() -> None:
    positions = torch.tensor([0, 1, 5, 99])
    x = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))  # 6 of 10 numbers are rotated: planes (0, 3), (1, 4), (2, 5)
    turned = rotate(x, *Rope(RopeConfig(rotary_dim=6), max_positions=100)(positions))
    plane = torch.complex(x[..., :3].double(), x[..., 3:6].double())
    angle = positions[:, None].double() * torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)], dtype=torch.float64)
    expected = plane * torch.polar(torch.ones_like(angle), angle)[:, None]
    torch.testing.assert_close(turned[..., :3].double(), expected.real, atol=1e-5, rtol=0.0)  # float32 angles up to 99 radians
    torch.testing.assert_close(turned[..., 3:6].double(), expected.imag, atol=1e-5, rtol=0.0)
    assert torch.equal(turned[..., 6:], x[..., 6:])


def test_attention_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 64, generator=torch.Generator().manual_seed(1))
    rope = Rope(RopeConfig(rotary_dim=64), max_positions=600)

    def score(query_at: int, key_at: int) -> float:
        turned = [rotate(x, *rope(torch.tensor([at]))) for x, at in ((query, query_at), (key, key_at))]
        return float((turned[0] * turned[1]).sum())

    assert score(17, 5) == pytest.approx(score(512, 500), abs=1e-3)
    assert not math.isclose(score(17, 5), score(17, 6), abs_tol=1e-2)


def test_a_position_has_the_same_bits_in_any_company() -> None:
    rope = Rope(RopeConfig(rotary_dim=16), max_positions=300)
    alone, among = rope(torch.tensor([257])), rope(torch.arange(300))
    assert torch.equal(alone[0][0], among[0][257])
    assert torch.equal(alone[1][0], among[1][257])


def test_angles_of_other_tokens_are_refused() -> None:
    cos, sin = Rope(RopeConfig(rotary_dim=8), max_positions=9)(torch.arange(5))
    with pytest.raises(ShapeError, match="cos has shape"):
        rotate(torch.zeros(4, 2, 8), cos, sin)


def test_the_original_context_may_stand_beside_the_scaling() -> None:
    config = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 512}
    scaling = rope_from_hf(config, head_dim=64, max_positions=2048).scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.original_max_positions == 512
