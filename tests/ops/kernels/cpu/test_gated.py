"""The gates of experts and their gradients, on every level: those of autograd over the reference in float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels.cpu.levels import level, needs_kernels
from tripod.errors import ConfigError, ShapeError
from tripod.ops.expert_mlp import Gating, gated
from tripod.ops.kernels.cpu.gated import gated_rows, gated_rows_gradients_

__all__ = ["level"]
pytestmark = needs_kernels


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("num_rows", "size"), [(0, 8), (1, 1), (7, 16), (5, 37), (300, 51)])  # of whole vectors and pieces, and not
@pytest.mark.parametrize("gating", ["swiglu", "double"])
def test_rows_and_gradients_are_those_of_the_reference(level: str, gating: Gating, num_rows: int, size: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)  # on which the kernels run
    generator = torch.Generator().manual_seed(size)
    first = 4 * torch.randn(num_rows, (2 if gating == "swiglu" else 3) * size, generator=generator)
    factors, of_hidden = torch.randn(num_rows, generator=generator), torch.randn(num_rows, size, generator=generator)
    inputs = [tensor.double().requires_grad_() for tensor in (first, factors)]
    expected = gated(inputs[0], gating) * inputs[1][:, None]
    of_first, of_factors = torch.autograd.grad(expected, inputs, of_hidden.double())

    torch.testing.assert_close(gated_rows(first, factors, gating).double(), expected.detach(), rtol=1e-5, atol=1e-6)
    found = gated_rows_gradients_(of_hidden, first, factors, gating)
    torch.testing.assert_close(of_hidden.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0].double(), of_first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].double(), of_factors, rtol=1e-4, atol=1e-4)


def test_what_is_not_a_number_stays_so() -> None:
    first = torch.tensor([[float("nan"), 1.0, 2.0, 2.0]])
    out = gated_rows(first, torch.ones(1), "swiglu")
    assert out.isnan().tolist() == [[True, False]]


def test_what_c_cannot_check_is_refused() -> None:
    first, factors = torch.zeros(2, 6), torch.zeros(2)
    with pytest.raises(ShapeError, match=r"first has shape \[2, 7\]; expected \[any, 6\]"):
        gated_rows(torch.zeros(2, 7), factors, "double")
    with pytest.raises(ShapeError, match=r"factors has shape \[3\]; expected \[2\]"):
        gated_rows(first, torch.zeros(3), "swiglu")
    with pytest.raises(ShapeError, match=r"of_hidden has shape \[2, 3\]; expected \[2, 2\]"):
        gated_rows_gradients_(torch.zeros(2, 3), first, factors, "double")
    with pytest.raises(ConfigError, match=r"first has dtype torch\.float64"):
        gated_rows(first.double(), factors, "swiglu")
