"""The Triton kernels between and around products, against torch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, relu, silu

from tests.ops.kernels.cuda.conftest import DEVICE
from tripod.ops.rms_norm import rms_norm

pytest.importorskip("triton", reason="the kernels for GPUs need the package triton (pip install triton)")

from tripod.ops.kernels.cuda.row_linear import linear_add, norm_linear
from tripod.ops.kernels.cuda.rows import Activation, Norms, activate, add_norm

D = 20
ACTIVATIONS = {"gelu_erf": gelu, "gelu_tanh": lambda x: gelu(x, approximate="tanh"), "silu": silu, "relu": relu}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def normed(x: Tensor, norms: Norms, which: int) -> Tensor:
    if norms.bias is None:
        return rms_norm(x, norms.weight[which], norms.eps)
    return layer_norm(x, (D,), norms.weight[which], norms.bias[which], norms.eps)


LAYER_NORMS = Norms(numbers(2, D, seed=1), numbers(2, D, seed=2), 1e-5, is_rms=False)
RMS_NORM = Norms(numbers(1, D, seed=3), None, 1e-5, is_rms=True)


@pytest.mark.parametrize("norms", [LAYER_NORMS, RMS_NORM])
def test_a_product_is_added_to_the_stream_and_every_norm_is_that_of_the_sum(norms: Norms) -> None:
    x, product, bias = numbers(3, D), numbers(3, D, seed=4), numbers(D, seed=5)
    total = x + product + bias
    out = add_norm(x, norms, torch.float32, product, bias)
    assert out.shape == (len(norms.weight), 3, D)
    close(x, total)
    for which, found in enumerate(out):
        close(found, normed(total, norms, which))
    close(add_norm(x, norms, torch.float32), out)  # nothing to add


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_torchs_and_gates_let_the_other_half_through(activation: Activation) -> None:
    x, out = numbers(3, 2 * D), torch.empty(3, 2 * D)
    activate(x, activation, out, is_gated=False)
    close(out, ACTIVATIONS[activation](x))
    half = out.split(D, dim=1)[1]  # rows with gaps
    activate(x, activation, half, is_gated=True)
    close(half, ACTIVATIONS[activation](x[:, :D]) * x[:, D:])


def test_a_row_is_normed_twice_and_meets_two_matrices_at_once() -> None:
    x, weight, bias = numbers(1, D), numbers(8 + 10, D, seed=4), numbers(18, seed=5)
    plain, active = torch.empty(1, 8), torch.empty(1, 10)
    norm_linear(x, LAYER_NORMS, weight, bias, plain, active, "gelu_erf")
    close(plain, normed(x, LAYER_NORMS, 0) @ weight[:8].T + bias[:8])
    close(active, gelu(normed(x, LAYER_NORMS, 1) @ weight[8:].T + bias[8:]))


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_row_meets_a_matrix_of_gates_and_one_that_they_let_through(has_bias: bool) -> None:
    x, weight, bias = numbers(1, D), numbers(2 * 10, D, seed=4), numbers(20, seed=5) if has_bias else None
    plain, active = torch.empty(1, 20), torch.empty(1, 10)
    norm_linear(x, RMS_NORM, weight, bias, plain, None)
    product = normed(x, RMS_NORM, 0) @ weight.T + (0.0 if bias is None else bias)
    close(plain, product)
    norm_linear(x, RMS_NORM, weight, bias, None, active, "silu", is_gated=True)
    close(active, silu(product[:, :10]) * product[:, 10:])


def test_a_product_of_a_row_is_added_to_the_stream() -> None:
    x, joint, bias, stream = numbers(1, D), numbers(7, 2 * D, seed=4), numbers(7, seed=5), numbers(1, 7, seed=6)
    weight = joint[:, :D]  # rows with gaps
    expected = stream + x @ weight.T + bias
    linear_add(stream, x, weight, bias)
    close(stream, expected)
