"""Faster layers are the same layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tripod.models.moe import Experts
from tripod.ops.expert_mlp import expert_mlp
from tripod.ops.moe_routing import RouterConfig, choose_experts
from tripod.training.fast_layers import FastEmbedding, FastExperts, FastLinear, has_onednn_linear, with_fast_layers


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_gives_what_torch_gives_forwards_and_backwards(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(40, 24, bias=bias)
    fast = nn.Sequential(nn.Linear(40, 24, bias=bias))
    fast[0].load_state_dict(plain.state_dict())
    with_fast_layers(fast)
    assert isinstance(fast[0], FastLinear)
    x = torch.randn(3, 17, 40)
    assert has_onednn_linear(x)  # else this compares torch with torch: see which part of it is gone
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(3, 17, 24)
    fast(ours).backward(upstream)
    plain(theirs).backward(upstream)
    torch.testing.assert_close(fast(ours), plain(theirs), rtol=1e-5, atol=1e-5)  # sums in another order
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    for parameter, expected in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_an_embedding_adds_to_the_gradients_that_are_there() -> None:
    torch.manual_seed(0)
    plain, fast = nn.Embedding(30, 8), nn.Sequential(nn.Embedding(30, 8))
    fast[0].load_state_dict(plain.state_dict())
    with_fast_layers(fast)
    assert isinstance(fast[0], FastEmbedding)
    for _ in range(2):
        ids, upstream = torch.randint(30, (4, 11)), torch.randn(4, 11, 8)
        fast(ids).backward(upstream)
        plain(ids).backward(upstream)
    torch.testing.assert_close(fast[0].weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-6)


def test_experts_add_to_the_gradients_that_are_there() -> None:
    torch.manual_seed(0)
    plain, fast = Experts(6, 8, 5), nn.Sequential(Experts(6, 8, 5))
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    fast[0].load_state_dict(plain.state_dict())
    with_fast_layers(fast)
    assert isinstance(fast[0], FastExperts)
    for num_rows in (3, 1300):  # few rows an expert, and many
        routing = choose_experts(torch.randn(num_rows, 6), RouterConfig(num_experts=6, top_k=2))
        x, upstream = torch.randn(num_rows, 8), torch.randn(num_rows, 8)
        fast[0](x, routing).backward(upstream)
        expert_mlp(x, routing, plain.up, plain.down, "swiglu").backward(upstream)
    torch.testing.assert_close(fast[0].up.grad, plain.up.grad, rtol=1e-5, atol=1e-3)  # sums of 433 rows in another order
    torch.testing.assert_close(fast[0].down.grad, plain.down.grad, rtol=1e-5, atol=1e-3)


def test_names_and_parameters_stay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), Experts(2, 4, 3))
    before = dict(model.named_parameters())
    with_fast_layers(model)
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is parameter for name, parameter in before.items())
