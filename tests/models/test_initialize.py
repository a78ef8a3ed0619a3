"""How a model begins: the measured spread of its weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import Initialization, initial_language_model
from tripod.models.llama import LlamaConfig
from tripod.models.openmoe import OpenMoEConfig
from tripod.ops.moe_routing import RouterConfig
from tripod.ops.rope import RopeConfig

NEOX = GPTNeoXConfig(
    vocab_size=512, hidden_size=128, intermediate_size=512, num_layers=4, num_heads=4, max_positions=64, rope=RopeConfig(rotary_dim=8)
)
LLAMA = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=512,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=64,
    rope=RopeConfig(rotary_dim=32),
)


@pytest.mark.parametrize("config", [NEOX, LLAMA], ids=["gpt_neox", "llama"])
@pytest.mark.parametrize(
    ("scheme", "input_side", "output_side"),
    [  # D = 128, L = 4, by the papers' formulas
        ("small-wang", math.sqrt(2 / (5 * 128)), 2 / (4 * math.sqrt(128))),
        ("normal-scaled", 0.02, 0.02 / math.sqrt(8)),
    ],
)
def test_matrices_have_the_spread_of_their_side(
    config: GPTNeoXConfig | LlamaConfig, scheme: Initialization, input_side: float, output_side: float
) -> None:
    model = initial_language_model(config, seed=5, scheme=scheme)
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    assert {"embedding.weight", "head.weight", "blocks.3.mlp.down.weight"} <= matrices.keys()
    for name, parameter in matrices.items():
        expected = output_side if name.endswith(("attention.output.weight", "mlp.down.weight")) else input_side
        num = parameter.numel()  # the standard error of a standard deviation is sigma / sqrt(2 n): five of them
        assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * num)), name
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(num), name


def test_openmoe_begins_as_it_did() -> None:
    """The embedding 1, routers 0.02; of all else, the head included, the variance is a tenth of one over the inputs of a matrix."""
    config = OpenMoEConfig(
        vocab_size=512, hidden_size=96, intermediate_size=160, num_layers=2, num_heads=4, head_dim=32, sparse_interval=2,
        router=RouterConfig(num_experts=8, top_k=2),
    )  # fmt: skip
    inputs = {"attention.output.weight": 4 * 32, "down.weight": 160, "experts.down": 160}  # and of all others D
    model = initial_language_model(config, seed=5, scheme="fan-in")
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert all(any(name.endswith(end) for name in matrices) for end in (*inputs, "router.weight", "experts.up", "head.weight"))
    for name, parameter in matrices.items():
        fan_in = next((size for end, size in inputs.items() if name.endswith(end)), 96)
        expected = {"embedding.weight": 1.0}.get(name, 0.02 if name.endswith("router.weight") else math.sqrt(0.1 / fan_in))
        num = parameter.numel()
        assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * num)), name
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(num), name


def test_norms_begin_as_ones_and_biases_as_zeros() -> None:
    for name, parameter in initial_language_model(NEOX, seed=5, scheme="small-wang").named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)), name


def test_a_tensor_does_not_depend_on_which_others_there_are() -> None:
    deep = dict(initial_language_model(NEOX, seed=5, scheme="normal-scaled").named_parameters())
    shallow = dict(initial_language_model(replace(NEOX, num_layers=2), seed=5, scheme="normal-scaled").named_parameters())
    assert torch.equal(deep["head.weight"], shallow["head.weight"])
    assert torch.equal(deep["blocks.1.mlp.up.weight"], shallow["blocks.1.mlp.up.weight"])


def test_tensors_and_seeds_differ() -> None:
    first = dict(initial_language_model(NEOX, seed=5, scheme="small-wang").named_parameters())
    other = dict(initial_language_model(NEOX, seed=6, scheme="small-wang").named_parameters())
    assert not torch.equal(first["blocks.0.mlp.up.weight"], first["blocks.1.mlp.up.weight"])
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_global_seed_does_not_matter_and_is_not_touched() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = initial_language_model(NEOX, seed=5, scheme="small-wang")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(initial_language_model(NEOX, seed=5, scheme="small-wang").embedding.weight, first.embedding.weight)
