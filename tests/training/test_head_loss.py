"""The head and its loss without all logits in memory: beside autograd over the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tripod.training import head_loss
from tripod.training.head_loss import head_gradients, head_losses


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of 150 tokens, a weight of 83 ids, targets."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(150, 24, generator=generator).to(dtype)
    return hidden, torch.randn(83, 24, generator=generator), torch.randint(83, (150,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and the gradients by autograd, in float64."""
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    losses = cross_entropy(x @ w.t(), targets, reduction="none")
    (losses.sum() * factor).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert w.grad is not None
    return losses.detach(), x.grad, w.grad


@pytest.mark.parametrize("kernels", ["avx512 or what there is", "off"])
@pytest.mark.parametrize("max_logits", [83 * 64, 1 << 26])
def test_losses_and_gradients_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch, kernels: str, max_logits: int) -> None:
    monkeypatch.setattr(head_loss, "_MAX_LOGITS", max_logits)
    if kernels == "off":
        monkeypatch.setattr(head_loss, "_has_kernels", lambda _: False)
    hidden, weight, targets = problem()
    expected, of_hidden, of_weight = plain(hidden, weight, targets, 0.25)
    weight.grad = torch.ones_like(weight)
    losses, gradient, _ = head_gradients(hidden, weight, targets, 0.25)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)  # float32 sums of 24 products and 83 exponentials
    torch.testing.assert_close(gradient.double(), of_hidden, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight.grad.double(), of_weight + 1.0, rtol=1e-4, atol=1e-5)  # added to what was there
    torch.testing.assert_close(head_losses(hidden, weight, targets).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_logits", [83 * 64, 1 << 26])
def test_the_loss_of_z_is_that_of_autograd(monkeypatch: pytest.MonkeyPatch, max_logits: int) -> None:
    monkeypatch.setattr(head_loss, "_MAX_LOGITS", max_logits)
    hidden, weight, targets = problem()
    x, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    log_sums = torch.logsumexp(x @ w.t(), -1)
    losses = cross_entropy(x @ w.t(), targets, reduction="none")
    (0.25 * (losses + 0.01 * log_sums.square()).sum()).backward()  # type: ignore[no-untyped-call]
    found = head_gradients(hidden, weight, targets, 0.25, z=0.01)
    assert weight.grad is not None
    torch.testing.assert_close(found.losses.double(), losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_sums.double(), log_sums.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.of_hidden.double(), x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), w.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_half_precision_rounds_the_logits_and_nothing_grows_from_it(dtype: torch.dtype, epsilon: float) -> None:
    hidden, weight, targets = problem(dtype)
    expected, of_hidden, of_weight = plain(hidden, weight.to(dtype), targets, 1.0)
    losses, gradient, _ = head_gradients(hidden, weight, targets, 1.0)
    assert weight.grad is not None
    assert losses.dtype == weight.grad.dtype == torch.float32
    assert (losses - expected).abs().max() < 2 * epsilon * 20  # logits reach 20
    for ours, theirs in ((gradient, of_hidden), (weight.grad, of_weight)):
        assert (ours - theirs).norm() / theirs.norm() < 4 * epsilon


def test_a_number_that_is_none_reaches_every_loss_of_its_row() -> None:
    hidden, weight, targets = problem()
    weight[7, 0] = float("nan")  # one id, which is the target of few tokens
    assert head_losses(hidden, weight, targets).isnan().all()
    hidden, weight, targets = problem()
    hidden[3, 0] = float("inf")
    assert head_losses(hidden, weight, targets).isfinite().tolist() == [token != 3 for token in range(150)]
