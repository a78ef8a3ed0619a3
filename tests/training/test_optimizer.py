"""AdamW beside torch's own and beside the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.training.conftest import MakeRecipe
from tripod.errors import CheckpointError
from tripod.models.initialize import initial_language_model
from tripod.training.optimizer import AdamW, parameter_groups
from tripod.training.recipe import OptimizerRecipe


def test_biases_and_norms_do_not_decay_and_embeddings_do(make_recipe: MakeRecipe) -> None:
    model = initial_language_model(make_recipe().model.config(), 0, "small-wang")
    names = dict(model.named_parameters())
    matrices, vectors = parameter_groups(names, 0.1)
    assert (matrices.weight_decay, vectors.weight_decay) == (0.1, 0.0)
    decayed, kept = set(matrices.names), set(vectors.names)
    assert all(name.endswith((".bias", "norm.weight")) for name in kept)
    assert not any(name.endswith(".bias") or "norm" in name for name in decayed)
    assert {"embedding.weight", "head.weight"} <= decayed
    assert len(decayed) + len(kept) == len(names)


def test_two_updates_of_one_number_are_those_of_the_paper() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64 by hand."""
    model = nn.Linear(1, 1)  # its bias does not decay
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(2.0)
    optimizer = AdamW(model, OptimizerRecipe(lr=1.0, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.5, clip=0.0))
    expected = {"weight": 2.0, "bias": 2.0}
    first = second = 0.0
    for step, (gradient, lr) in enumerate([(0.5, 0.1), (-2.0, 0.2)], 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        change = (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.95**step)) + 1e-8)
        for name, decay in (("weight", 0.5), ("bias", 0.0)):
            expected[name] -= lr * decay * expected[name] + lr * change
        model.weight.grad = torch.full((1, 1), gradient)
        model.bias.grad = torch.full((1,), gradient)
        optimizer.update(lr)
    assert model.weight.item() == pytest.approx(expected["weight"], rel=1e-6)
    assert model.bias.item() == pytest.approx(expected["bias"], rel=1e-6)
    assert model.weight.grad is None


def test_gradients_are_shortened_to_the_global_norm_after_the_scale_is_taken_out() -> None:
    model = nn.Linear(2, 1)
    optimizer = AdamW(model, OptimizerRecipe(lr=1.0, clip=1.0))
    model.weight.grad, model.bias.grad = torch.tensor([[24.0, 0.0]]), torch.tensor([32.0])
    assert optimizer.clip_gradients(loss_scale=8.0) == pytest.approx(5.0)  # (3, 0, 4)
    assert torch.cat([model.weight.grad[0], model.bias.grad]).tolist() == pytest.approx([0.6, 0.0, 0.8], rel=1e-5)
    assert optimizer.clip_gradients() == pytest.approx(1.0, rel=1e-5)


def test_short_gradients_stay_as_they_are() -> None:
    model = nn.Linear(1, 1)
    optimizer = AdamW(model, OptimizerRecipe(lr=1.0, clip=1.0))
    model.weight.grad, model.bias.grad = torch.tensor([[0.25]]), torch.tensor([0.5])
    optimizer.clip_gradients()
    assert (model.weight.grad.item(), model.bias.grad.item()) == (0.25, 0.5)


def test_a_state_read_back_goes_on_bit_for_bit() -> None:
    recipe = OptimizerRecipe(lr=1e-2)
    models = [nn.Linear(8, 8) for _ in range(2)]
    optimizers = [AdamW(model, recipe) for model in models]
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(8, 8, generator=generator) for _ in range(6)]
    for gradient in gradients[:3]:
        models[0].weight.grad, models[0].bias.grad = gradient.clone(), gradient[0].clone()
        optimizers[0].update(1e-2)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load({name: tensor.clone() for name, tensor in optimizers[0].tensors().items()}, num_updates=3)
    for gradient in gradients[3:]:
        for model, optimizer in zip(models, optimizers, strict=True):
            model.weight.grad, model.bias.grad = gradient.clone(), gradient[0].clone()
            optimizer.update(1e-2)
    assert torch.equal(models[0].weight, models[1].weight)
    for name, tensor in optimizers[0].tensors().items():
        assert torch.equal(tensor, optimizers[1].tensors()[name])


def test_the_state_of_another_model_is_refused() -> None:
    optimizer = AdamW(nn.Linear(2, 2), OptimizerRecipe(lr=1.0))
    with pytest.raises(CheckpointError, match=r"exp_avg\.weight"):
        optimizer.load(AdamW(nn.Linear(3, 2), OptimizerRecipe(lr=1.0)).tensors(), 1)
