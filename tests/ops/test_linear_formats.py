"""What the four formats of a linear layer do to numbers: by hand, and in laws that hold for any weight."""

from __future__ import annotations

import pytest
import torch

from tripod.errors import ConfigError, ShapeError
from tripod.ops.linear_formats import activate, format_weight, gate_up, linear, quantize, round_activations


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_eight_bits_spread_a_row_over_127_steps_of_its_largest_value() -> None:
    values, scales = quantize(torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert values.tolist() == [[127, -64, 32, 0], [0, 0, 0, 0]]  # -63.5 and 31.75: ties go to the even neighbour
    torch.testing.assert_close(scales, torch.tensor([2 / 127, 0.0]))


def test_four_bits_give_minus_eight_to_the_largest_of_a_group() -> None:
    row = torch.zeros(1, 64)
    row[0, 0], row[0, 1], row[0, 2] = 4.0, -4.0, 1.0  # step -0.5: 4 is -8, -4 would be 8 and is cut to 7
    row[0, 40] = -8.0  # the second group: step 1
    weight = format_weight(row, "int4", 32)
    assert weight.values[0, :3].tolist() == [-8, 7, -2]
    assert weight.values[0, 40] == -8
    assert weight.scales is not None
    assert weight.scales.tolist() == [[-0.5, 1.0]]
    assert weight.dense()[0, [0, 1, 2, 40]].tolist() == [4.0, -3.5, 1.0, -8.0]


@pytest.mark.parametrize(("format", "group", "steps"), [("int8", None, 254), ("int4", 32, 15), ("int4", 128, 15)])
def test_a_weight_moves_by_half_a_step_at_most_unless_it_is_cut(format: str, group: int | None, steps: int) -> None:
    weight = _random(24, 300)
    formatted = format_weight(weight, format, group)
    assert formatted.scales is not None
    step = formatted.scales.float().abs()
    wide = step[:, None].expand(24, 300) if group is None else step.repeat_interleave(group, dim=1)[:, :300]
    moved = (formatted.dense() - weight).abs()
    cut = formatted.values == 7 if format == "int4" else torch.zeros_like(weight, dtype=torch.bool)
    # 0.04: the bfloat16 scale of the largest value is off by 2^-9 of 8 steps at most
    assert bool((moved <= wide * (0.5 + (0.04 if format == "int4" else 1e-5)))[~cut].all())
    assert formatted.values.unique().numel() <= steps + 1


def test_full_formats_keep_the_numbers_that_they_can_hold() -> None:
    weight = _random(3, 5)
    assert torch.equal(format_weight(weight, "f32").dense(), weight)
    assert torch.equal(format_weight(weight, "bf16").dense(), weight.bfloat16().float())


@pytest.mark.parametrize(("format", "group"), [("f32", None), ("bf16", None), ("int8", None), ("int4", 32), ("int4", 64)])
def test_a_layer_is_the_product_of_its_rounded_factors(format: str, group: int | None) -> None:
    x, weight, bias = _random(6, 100, seed=1), format_weight(_random(9, 100), format, group), _random(9, seed=2)
    expected = torch.nn.functional.linear(round_activations(x, weight.format, group), weight.dense().double(), bias.double())
    torch.testing.assert_close(
        linear(x, weight, bias, dtype=torch.float64), expected, rtol=1e-6, atol=1e-6
    )  # the scale is float32 in dense()
    torch.testing.assert_close(
        linear(x, weight, bias, "silu", residual=x[:, :9], dtype=torch.float64),
        torch.nn.functional.silu(expected) + x[:, :9].double(),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(("format", "error"), [("f32", 1e-6), ("bf16", 6e-3), ("int8", 2e-2), ("int4", 0.15)])
def test_a_layer_is_close_to_the_unrounded_one_by_what_its_bits_allow(format: str, error: float) -> None:
    x, weight = _random(32, 768, seed=1), _random(768, 768) / 768**0.5
    result = linear(x, format_weight(weight, format, 32 if format == "int4" else None), dtype=torch.float64)
    exact = x.double() @ weight.double().T
    assert ((result - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item() < error


def test_activations_are_quantised_by_token_and_group_so_a_large_one_harms_only_its_own() -> None:
    x = _random(1, 64)
    x[0, 0] = 1e6
    rounded = round_activations(x, "int4", 32)
    assert ((rounded - x.double()).abs()[0, 32:] <= x[0, 32:].abs().max() / 254 + 1e-6).all()


def test_the_gated_half_is_silu_of_one_product_times_the_other() -> None:
    x, gate, up = _random(4, 16), _random(8, 16, seed=1), _random(8, 16, seed=2)
    expected = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    torch.testing.assert_close(gate_up(x, format_weight(gate, "f32"), format_weight(up, "f32")), expected, rtol=1e-5, atol=1e-5)


def test_activations_at_one() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert activate(one, "gelu_erf").item() == pytest.approx(0.8413447460685429)  # the normal distribution at 1
    assert activate(one, "gelu_tanh").item() == pytest.approx(0.8411919906082768)  # 0.5 (1 + tanh(sqrt(2 / pi) 1.044715))
    assert activate(one, "silu").item() == pytest.approx(0.7310585786300049)  # 1 / (1 + 1/e)
    assert activate(one, None) is one


def test_a_format_that_does_not_exist_or_has_no_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="format='fp8' is unknown; use one of f32, bf16, int8, int4"):
        format_weight(_random(2, 2), "fp8")
    with pytest.raises(ConfigError, match="group=48"):
        format_weight(_random(2, 64), "int4", 48)
    with pytest.raises(ConfigError, match="leave it out"):
        format_weight(_random(2, 64), "int8", 32)
    with pytest.raises(ShapeError, match=r"weight has shape \[2\]"):
        format_weight(torch.zeros(2), "f32")
