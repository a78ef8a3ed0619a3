"""Linear layers on every level: equal to the reference in float64, and row by row the same bits in any batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.kernels.cpu.levels import level, needs_kernels
from tripod.errors import ConfigError, ShapeError
from tripod.ops import linear_formats as reference
from tripod.ops.kernels.cpu.linear import gate_up, gate_up_bias, linear, linear_argmax, pack_gate_up, pack_linear
from tripod.ops.kernels.cpu.packing import PackedWeight
from tripod.ops.kernels.cpu.threads import set_num_threads

__all__ = ["level"]
pytestmark = needs_kernels

FORMATS = [("f32", None), ("bf16", None), ("int8", None), ("int4", 32), ("int4", 64), ("int4", 128)]
each_format = pytest.mark.parametrize(("format", "group"), FORMATS)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _error(result: Tensor, expected: Tensor) -> float:
    return ((result.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def _layer(num_outputs: int, num_inputs: int, format: str, group: int | None) -> tuple[PackedWeight, reference.FormattedWeight]:
    weight = _random(num_outputs, num_inputs) / num_inputs**0.5
    return pack_linear(weight, format, group), reference.format_weight(weight, format, group)


@each_format
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 128), (200, 77), (1, 1), (130, 900), (192, 1600)])
def test_a_layer_equals_its_reference_at_any_batch_size(
    level: str, format: str, group: int | None, num_outputs: int, num_inputs: int
) -> None:
    packed, rounded = _layer(num_outputs, num_inputs, format, group)
    bias = _random(num_outputs, seed=1)
    for rows in (1, 2, 5, 6, 7, 13, 31, 64):
        x = _random(rows, num_inputs, seed=rows)
        expected = reference.linear(x, rounded, bias, dtype=torch.float64)
        # float32 sums of up to 1600 products; a rounding of activations that falls on the other side of a tie would be 1e-4
        assert _error(linear(x, packed, bias), expected) < 1e-5


@given(
    rows=st.integers(1, 70),
    num_outputs=st.integers(1, 300),
    num_inputs=st.integers(1, 500),
    layer=st.sampled_from(FORMATS),
    activation=st.sampled_from([None, "gelu_erf", "gelu_tanh", "silu"]),
    x_type=st.sampled_from([torch.float32, torch.bfloat16]),
    has_bias=st.booleans(),
    has_residual=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_any_shape_with_any_ending_equals_its_reference(
    level: str,
    rows: int,
    num_outputs: int,
    num_inputs: int,
    layer: tuple[str, int | None],
    activation: reference.LinearActivation | None,
    x_type: torch.dtype,
    has_bias: bool,
    has_residual: bool,
) -> None:
    packed, rounded = _layer(num_outputs, num_inputs, *layer)
    x = _random(rows, num_inputs, seed=3).to(x_type)
    bias = _random(num_outputs, seed=1) if has_bias else None
    residual = _random(rows, num_outputs, seed=2) if has_residual else None
    out = torch.full((rows, num_outputs), torch.nan)
    expected = reference.linear(x, rounded, bias, activation, residual, dtype=torch.float64)
    assert linear(x, packed, bias, activation, residual, out=out) is out
    # atol: where a whole result is near nothing, the polynomials of the activations have an absolute error of 1.5e-7
    torch.testing.assert_close(out.double(), expected, rtol=2e-5, atol=2e-5 * max(1.0, expected.abs().max().item()))


@each_format
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(level: str, format: str, group: int | None, num_threads: int) -> None:
    packed, _ = _layer(200, 900, format, group)
    x, bias = _random(600, 900, seed=4), _random(200, seed=5)
    set_num_threads(1)
    alone = torch.cat([linear(row[None], packed, bias, "gelu_erf") for row in x[:64]])
    set_num_threads(num_threads)
    for rows in range(1, 65):
        assert torch.equal(linear(x[:rows], packed, bias, "gelu_erf"), alone[:rows])
    for rows in (200, 252, 253, 600):  # several blocks of rows
        start = rows // 3  # 64 rows at another place of a large batch
        batch = torch.cat([x[64 : 64 + start], x[:64], x[64 + start :]])[:rows]
        assert torch.equal(linear(batch, packed, bias, "gelu_erf")[start : start + 64], alone[: rows - start])


@each_format
def test_gate_and_up_in_one_pass_equal_their_reference(level: str, format: str, group: int | None) -> None:
    gate, up = _random(200, 96) / 10, _random(200, 96, seed=1) / 10
    packed = pack_gate_up(gate, up, format, group)
    x = _random(9, 96, seed=2)
    rounded = [reference.format_weight(weight, format, group) for weight in (gate, up)]
    assert _error(gate_up(x, packed), reference.gate_up(x, *rounded, dtype=torch.float64)) < 1e-5
    biases = _random(200, seed=3), _random(200, seed=4)
    halves = [reference.linear(x, weight, bias, dtype=torch.float64) for weight, bias in zip(rounded, biases, strict=True)]
    assert _error(gate_up(x, packed, gate_up_bias(*biases)), torch.nn.functional.silu(halves[0]) * halves[1]) < 1e-5
    assert torch.equal(gate_up(x[4:5], packed), gate_up(x, packed)[4:5])


@each_format
def test_bfloat16_rows_come_in_and_go_out_rounded_once(level: str, format: str, group: int | None) -> None:
    packed, rounded = _layer(96, 200, format, group)
    x, residual = _random(7, 200, seed=1).bfloat16(), _random(7, 96, seed=2).bfloat16()
    expected = reference.linear(x, rounded, residual=residual, dtype=torch.float64)
    result = linear(x, packed, residual=residual)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=1e-3)  # bfloat16 keeps 8 bits


def test_the_residual_may_be_the_output(level: str) -> None:
    packed, rounded = _layer(70, 64, "bf16", None)
    x, residual = _random(5, 64, seed=1), _random(5, 70, seed=2)
    expected = reference.linear(x, rounded, residual=residual, dtype=torch.float64)
    linear(x, packed, residual=residual, out=residual)
    assert _error(residual, expected) < 1e-5


@each_format
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_not_rounded_into_one(level: str, format: str, group: int | None, value: float) -> None:
    packed, _ = _layer(64, 128, format, group)
    x = _random(3, 128)
    x[1, 5] = value
    result = linear(x, packed)
    assert not result[1].isfinite().any()
    assert result[[0, 2]].isfinite().all()


def test_extreme_activations_go_to_their_limits(level: str) -> None:
    packed = pack_linear(torch.eye(64), "f32")
    x = torch.tensor([-1e30, -200.0, -90.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 90.0, 1e30]).repeat(7)[:64][None].contiguous()
    for activation in ("gelu_erf", "gelu_tanh", "silu"):
        torch.testing.assert_close(linear(x, packed, activation=activation), reference.activate(x, activation), rtol=1e-6, atol=1e-6)


def test_an_empty_batch_gives_an_empty_result() -> None:
    packed, _ = _layer(64, 128, "bf16", None)
    assert linear(torch.zeros(0, 128), packed).shape == (0, 64)


def test_what_the_kernel_could_not_check_is_refused_before_it() -> None:
    packed, _ = _layer(64, 128, "bf16", None)
    x = _random(4, 128)
    with pytest.raises(ShapeError, match="expects 128 in the last place"):
        linear(x[:, :100], packed)
    with pytest.raises(ShapeError, match=r"pass x\.contiguous\(\)"):
        linear(_random(128, 4).T, packed)
    with pytest.raises(ConfigError, match=r"x has dtype torch\.float64"):
        linear(x.double(), packed)
    with pytest.raises(ShapeError, match=r"bias has shape \[128\]; expected \[64\]"):
        linear(x, packed, x[0])
    with pytest.raises(ShapeError, match=r"out has shape \[4, 32\]"):
        linear(x, packed, out=torch.empty(4, 32))
    with pytest.raises(ConfigError, match="activation='tanh'"):
        linear(x, packed, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pack_gate_up"):
        gate_up(x, packed)
    with pytest.raises(ConfigError, match="call gate_up"):
        linear(x, pack_gate_up(_random(64, 128), _random(64, 128), "f32"))


@each_format
@pytest.mark.parametrize("num_rows", [0, 1, 7, 300])  # 300: two blocks of rows
@pytest.mark.parametrize("threads", [1, 3])
def test_the_largest_of_a_product_is_that_of_the_written_product(
    level: str, format: str, group: int | None, num_rows: int, threads: int
) -> None:
    packed, _ = _layer(333, 128, format, group)
    x = _random(num_rows, 128, seed=3)
    if num_rows > 4:
        x[3] = 0.0  # all equal: the first
        x[4, 5] = torch.nan
    set_num_threads(threads)
    try:
        written = linear(x, packed)
        places, values = linear_argmax(x, packed)
    finally:
        set_num_threads(1)
    expected = written.argmax(-1)
    assert torch.equal(places, expected)
    assert torch.equal(values.nan_to_num(7.0), written.gather(-1, expected[:, None])[:, 0].nan_to_num(7.0))


def test_gate_and_up_have_no_single_largest() -> None:
    packed = pack_gate_up(_random(64, 8), _random(64, 8), "f32", None)
    with pytest.raises(ConfigError, match="gate and up together"):
        linear_argmax(_random(2, 8), packed)
