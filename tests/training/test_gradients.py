"""The loss and its gradients, beside transformers and beside themselves in other pieces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.training.conftest import MakeRecipe
from tripod.models.gpt_neox import GPTNeoX
from tripod.models.initialize import initial_language_model
from tripod.models.llama import Llama
from tripod.training.dropout import RowDropout
from tripod.training.gradients import accumulate_gradients, compute_dtype, mean_loss, row_losses


@pytest.fixture
def model(make_recipe: MakeRecipe) -> GPTNeoX | Llama:
    return initial_language_model(make_recipe().model.config(), 1, "small-wang")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(259, (6, 17), generator=torch.Generator().manual_seed(3))


def gradients(model: GPTNeoX | Llama, tokens: Tensor, micro_rows: int, *, rate: float = 0.0, scale: float = 1.0) -> tuple[float, Tensor]:
    model.zero_grad()
    dropout = RowDropout(model, rate, seed=9)
    loss = accumulate_gradients(
        model, tokens, range(40, 46), micro_rows=micro_rows, precision="fp32", dropout=dropout, loss_scale=scale
    ).item()
    return loss, torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_micro_batches_change_rounding_only(model: GPTNeoX | Llama, tokens: Tensor, micro_rows: int) -> None:
    """Of four micro-batches the last is smaller: it must weigh less."""
    whole_loss, whole = gradients(model, tokens, 6)
    loss, parts = gradients(model, tokens, micro_rows)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)  # float32 sums in another order


def test_the_loss_scale_multiplies_the_gradients_and_not_the_loss(model: GPTNeoX | Llama, tokens: Tensor) -> None:
    loss, plain = gradients(model, tokens, 6)
    scaled_loss, scaled = gradients(model, tokens, 6, scale=64.0)
    assert scaled_loss == loss
    torch.testing.assert_close(scaled / 64.0, plain, rtol=1e-6, atol=0)  # a power of two


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(model: GPTNeoX | Llama, tokens: Tensor) -> None:
    assert model.head is not None
    torch.nn.init.zeros_(model.head.weight)
    assert mean_loss(model, tokens, micro_rows=4, precision="fp32").item() == pytest.approx(math.log(259), rel=1e-6)


def test_the_mean_loss_is_that_of_the_rows(model: GPTNeoX | Llama, tokens: Tensor) -> None:
    alone = [mean_loss(model, row[None], micro_rows=1, precision="fp32").item() for row in tokens]
    assert row_losses(model, tokens, micro_rows=4, precision="fp32").tolist() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_keeps_weights_and_gradients_in_float32(model: GPTNeoX | Llama, tokens: Tensor, precision: str) -> None:
    exact, whole = gradients(model, tokens, 6)
    model.zero_grad()
    dropout = RowDropout(model, 0.0, seed=9)
    loss = accumulate_gradients(model, tokens, range(6), micro_rows=6, precision=precision, dropout=dropout, loss_scale=1.0)  # type: ignore[arg-type]
    grads = [parameter.grad for parameter in model.parameters()]
    assert {gradient.dtype for gradient in grads if gradient is not None} == {torch.float32}
    flat = torch.cat([gradient.flatten() for gradient in grads if gradient is not None])
    assert 0 < abs(loss.item() - exact) < 0.01  # not the same: it was computed in half precision
    epsilon = torch.finfo(compute_dtype(precision)).eps  # type: ignore[arg-type]
    assert (flat - whole).norm() / whole.norm() < 4 * epsilon


class TestDropout:
    def test_it_is_the_same_in_any_micro_batches(self, model: GPTNeoX | Llama, tokens: Tensor) -> None:
        whole_loss, whole = gradients(model, tokens, 6, rate=0.3)
        model_again = initial_language_model(model.config, 1, "small-wang")
        loss, parts = gradients(model_again, tokens, 4, rate=0.3)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)

    def test_it_changes_with_the_row_and_only_while_training(self, model: GPTNeoX | Llama, tokens: Tensor) -> None:
        plain = mean_loss(model, tokens, micro_rows=6, precision="fp32").item()
        dropout = RowDropout(model, 0.3, seed=9)
        assert mean_loss(model, tokens, micro_rows=6, precision="fp32").item() == plain
        losses = []
        for rows in (range(6), range(6), range(6, 12)):
            with dropout.training(rows):
                losses.append(mean_loss(model, tokens, micro_rows=6, precision="fp32").item())
        assert losses[0] == losses[1] != losses[2]
        assert plain not in losses

    def test_it_drops_its_share_and_keeps_the_mean(self) -> None:
        layer = torch.nn.ModuleDict({"mlp": torch.nn.Identity()})
        wrapper = torch.nn.ModuleDict({"block": layer})
        dropout = RowDropout(wrapper, 0.25, seed=0)
        with dropout.training([0, 1]):
            output = layer["mlp"](torch.ones(2, 100, 100))
        assert (output == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)  # 20 000 draws: three standard errors are 0.01
        assert output.max().item() == pytest.approx(1 / 0.75)
