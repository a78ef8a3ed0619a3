"""Row operations against their definitions in float64, at lengths that are not whole vectors, on every level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.cpu.levels import level, needs_kernels  # noqa: F401  the fixture
from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.rows import argmax, embedding, layer_norm, rms_norm, rotate
from tripod.ops.kernels.cpu.threads import set_num_threads
from tripod.ops.rope import Rope, RopeConfig

pytestmark = [needs_kernels, pytest.mark.usefixtures("level")]

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [1, 15, 16, 64, 77, 768]
# Results of size up to 5: float32 sums of at most 768 squares; a bfloat16 result is rounded once, to 8 bits.
TOLERANCE = {torch.float32: {"atol": 4e-6, "rtol": 1e-6}, torch.bfloat16: {"atol": 1e-6, "rtol": 2**-8}}


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(seen: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(seen.double(), expected.double(), **TOLERANCE[seen.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm_is_its_definition_also_far_from_zero(size: int, dtype: torch.dtype, with_bias: bool) -> None:
    x = (drawn(3, size) * 3 + 40).to(dtype)
    weight, bias = drawn(size, seed=2), drawn(size, seed=3) if with_bias else None
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    seen = layer_norm(x, weight, bias, 1e-5)
    error = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-4, "rtol": 2**-8}  # 40 keeps 18 bits of a fraction
    torch.testing.assert_close(seen.double(), expected + (0 if bias is None else bias.double()), **error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_is_its_definition_for_rows_and_for_heads(size: int, dtype: torch.dtype) -> None:
    x, weight = drawn(3, 2, size).to(dtype), drawn(size, seed=2)
    wide = x.double()
    close(rms_norm(x, weight, 1e-6), wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_that_adds_first_is_the_norm_of_the_sum_which_it_leaves_in_x(dtype: torch.dtype) -> None:
    x, added, weight = drawn(5, 77).to(dtype), drawn(5, 77, seed=2).to(dtype), drawn(77, seed=3)
    for norm in (lambda x, **add: rms_norm(x, weight, 1e-6, **add), lambda x, **add: layer_norm(x, weight, weight, 1e-5, **add)):
        total = x.clone()
        seen = norm(total, add=added)
        assert torch.equal(total, x + added)
        assert torch.equal(seen, norm(x + added))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 16), (64, 64), (8, 2), (80, 40)])
def test_rotation_turns_planes_by_the_angle_of_the_token(head_dim: int, rotary_dim: int, dtype: torch.dtype) -> None:
    positions = torch.tensor([0, 1, 500])
    cos, sin = Rope(RopeConfig(rotary_dim=rotary_dim), 512)(positions)
    fused = drawn(3, 4, 3, head_dim).to(dtype)
    x = fused[:, :, 1]
    half = rotary_dim // 2
    plane = torch.complex(x[..., :half].double(), x[..., half:rotary_dim].double()) * torch.complex(cos.double(), sin.double())
    expected = torch.cat((plane.real, plane.imag, x[..., rotary_dim:].double()), dim=-1)
    close(rotate(x, cos, sin), expected)
    before = fused.clone()
    assert rotate(x, cos, sin, out=x) is x
    close(x, expected)
    assert torch.equal(fused[:, :, [0, 2]], before[:, :, [0, 2]])


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_embedding_reads_rows_and_converts_them(stored: torch.dtype, wanted: torch.dtype) -> None:
    table, ids = drawn(50, 33).to(stored), torch.tensor([49, 0, 7, 7])
    assert torch.equal(embedding(ids, table, wanted), table[ids].to(wanted))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_argmax_is_the_first_of_the_largest(dtype: torch.dtype, threads: int) -> None:
    set_num_threads(threads)
    try:
        for size in (1, 3, 1024, 5003):
            x = drawn(9, size).to(dtype)
            x[0, size // 2 :] = 7.0
            x[1] = -torch.inf
            x[2, size // 3] = torch.inf
            x[3, [size // 2, -1]] = torch.nan
            x[4, -1] = 9.0
            expected = x.float().argmax(-1)
            expected[:2] = torch.tensor([size // 2, 0])
            expected[3] = size // 2
            assert torch.equal(argmax(x), expected)
        assert argmax(torch.empty(0, 5)).shape == (0,)
    finally:
        set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone(dtype: torch.dtype) -> None:
    x, weight = drawn(7, 100).to(dtype), drawn(100, seed=2)
    for whole, alone in ((layer_norm(x, weight, weight, 1e-5), layer_norm(x[3:4], weight, weight, 1e-5)),
                         (rms_norm(x, weight, 1e-6), rms_norm(x[3:4], weight, 1e-6))):  # fmt: skip
        assert torch.equal(whole[3:4], alone)


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ShapeError, match=r"weight has shape \[7\]"):
        rms_norm(x, torch.zeros(7), 1e-6)
    with pytest.raises(ConfigError, match=r"weight has dtype torch\.bfloat16"):
        layer_norm(x, weight.bfloat16(), None, 1e-5)
    with pytest.raises(ConfigError, match=r"add has dtype torch\.bfloat16; expected torch\.float32"):
        rms_norm(x, weight, 1e-6, add=x.bfloat16())
    with pytest.raises(ShapeError, match=r"pass x\.contiguous"):
        rms_norm(torch.zeros(8, 2).T, weight, 1e-6)
    with pytest.raises(ConfigError, match=r"ids\[1\]=50 is not one of the table's 50 rows"):
        embedding(torch.tensor([0, 50]), torch.zeros(50, 4), torch.float32)
    with pytest.raises(ShapeError, match="cos turns 10 numbers of a head; x has heads of 8"):
        rotate(torch.zeros(1, 1, 8), torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))
    with pytest.raises(ShapeError, match="an empty row has no largest number"):
        argmax(torch.zeros(2, 0))
