"""Adafactor beside transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tripod.training.adafactor import Adafactor
from tripod.training.recipe import OptimizerRecipe


class Weights(nn.Module):
    """A matrix, three matrices in one tensor, and a vector; small numbers, so that the floor of relative steps is met."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.experts = nn.Parameter(torch.randn(3, 4, 5, generator=generator) * 0.1)
        self.zeros = nn.Parameter(torch.zeros(7))


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) * 10.0 ** (step - 3) for shape in ((6, 4), (3, 4, 5), (7,))]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_six_updates_are_those_of_transformers(weight_decay: float) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = Weights(), Weights()
    optimizer = Adafactor(ours, OptimizerRecipe(kind="adafactor", lr=0.01, weight_decay=weight_decay))
    options = {"lr": 0.01, "scale_parameter": True, "relative_step": False, "warmup_init": False}
    matrices, vector = [theirs.matrix, theirs.experts], [theirs.zeros]  # vectors do not decay
    reference = transformers.Adafactor([{"params": matrices, "weight_decay": weight_decay}, {"params": vector}], **options)
    for step in range(6):
        for model in (ours, theirs):
            for parameter, gradient in zip(model.parameters(), gradients(step), strict=True):
                parameter.grad = gradient.clone()
        optimizer.update(0.01)
        reference.step()
        for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-8)  # float32, products in another order
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_matrix_takes_a_row_and_a_column_of_memory() -> None:
    state = Adafactor(Weights(), OptimizerRecipe(kind="adafactor", lr=0.01)).tensors()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "exp_avg_sq_row.matrix": (6,),
        "exp_avg_sq_col.matrix": (4,),
        "exp_avg_sq_row.experts": (3, 4),
        "exp_avg_sq_col.experts": (3, 5),
        "exp_avg_sq.zeros": (7,),
    }


def test_a_state_read_back_goes_on_bit_for_bit() -> None:
    recipe = OptimizerRecipe(kind="adafactor", lr=0.01)
    models = [Weights(), Weights()]
    optimizers = [Adafactor(model, recipe) for model in models]

    def train(number: int, step: int) -> None:
        for parameter, gradient in zip(models[number].parameters(), gradients(step), strict=True):
            parameter.grad = gradient.clone()
        optimizers[number].update(0.01)

    for step in range(3):
        train(0, step)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load({name: tensor.clone() for name, tensor in optimizers[0].tensors().items()}, num_updates=3)
    for step in (3, 4):
        for number in (0, 1):
            train(number, step)
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, other)
