"""A packed linear computes what its format is defined to compute, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tripod.errors import ConfigError
from tripod.ops.linear import WeightFormat, parts_of, weight_bytes
from tripod.ops.linear_formats import format_weight, linear
from tripod.ops.torch_linear import pack_torch_linear

FORMATS: list[tuple[WeightFormat, float]] = [  # the error that the rounding of the sum leaves, relative to the largest output of a row
    ("f32", 1e-6),
    ("bf16", 8e-3),  # a row's results are rounded to 8 bits, and in between once more
    ("int8", 1e-6),
]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("weight_format", "tolerance"), FORMATS)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 96), (259, 48), (33, 20)])
def test_each_format_computes_its_definition_for_any_number_of_rows(
    weight_format: WeightFormat, tolerance: float, num_outputs: int, num_inputs: int
) -> None:
    weight, bias = random(num_outputs, num_inputs, seed=1), random(num_outputs, seed=2)
    for with_bias in (bias, None):
        packed = pack_torch_linear(weight, with_bias, weight_format)
        for num_rows in (1, 2, 7, 32, 33, 100):
            x = random(num_rows, num_inputs, seed=num_rows) * torch.logspace(-2, 2, num_rows)[:, None]  # each token has its own scale
            expected = linear(x, format_weight(weight, weight_format), with_bias, dtype=torch.float64)
            error = (packed(x) - expected).abs().amax(-1) / expected.abs().amax(-1)
            assert float(error.max()) < tolerance, num_rows


def test_leading_dimensions_and_the_type_of_the_activations_are_kept() -> None:
    weight = random(64, 96, seed=1)
    for weight_format, _ in FORMATS:
        packed = pack_torch_linear(weight, None, weight_format)
        x = random(2, 3, 96, seed=3)
        assert packed(x.bfloat16()).dtype is torch.bfloat16
        torch.testing.assert_close(packed(x), torch.stack([packed(part) for part in x]), rtol=0, atol=2e-2 * float(packed(x).abs().max()))


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [
        ("f32", 4 * 64 * 96),
        ("bf16", 2 * 64 * 96),
        ("int8", 64 * 100),
        ("int4", 64 * (48 + 3 * 2)),
        ("int4-64", 64 * 51),
        ("int4-128", 64 * 49.5),
    ],
)
def test_bytes_are_known_before_packing(weight_format: WeightFormat, expected: float) -> None:
    assert weight_bytes(64, 96, weight_format) == expected
    if not weight_format.startswith("int4"):
        assert pack_torch_linear(random(64, 96, seed=1), None, weight_format).num_bytes == expected


def test_a_name_is_a_format_and_a_group() -> None:
    assert [parts_of(name) for name in ("bf16", "int4", "int4-128")] == [("bf16", None), ("int4", 32), ("int4", 128)]
    with pytest.raises(ConfigError, match="weight_format='int4-256' is unknown; use one of f32, bf16, int8, int4, int4-64, int4-128"):
        parts_of("int4-256")


def test_what_torch_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="int4 on cpu; choose f32 or bf16, or kernels='native'"):
        pack_torch_linear(random(64, 96, seed=1), None, "int4")
