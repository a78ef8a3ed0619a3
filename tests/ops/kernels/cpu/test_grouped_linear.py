"""Products of rows with the matrices of their experts, and the gradients of both, on every level: equal to einsum in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.cpu.levels import level, needs_kernels
from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.grouped_linear import gradient_of_x, grouped_linear, write_gradient_of_weight

__all__ = ["level"]
pytestmark = needs_kernels

SHAPES = [(5, 37, 51), (3, 64, 96), (2, 1, 1), (4, 130, 300)]  # experts, outputs, inputs: of whole vectors and tiles, and not
ROWS = [0, 1, 7, 23]  # of some expert; the others have none, one, and so on


def _parts(num_experts: int, num_outputs: int, num_inputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_outputs)
    counts = torch.tensor([ROWS[expert % len(ROWS)] for expert in range(num_experts)])
    shapes = (int(counts.sum()), num_inputs), (num_experts, num_outputs, num_inputs), (int(counts.sum()), num_outputs)
    x, weight, of_y = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, of_y, counts, torch.repeat_interleave(torch.arange(num_experts), counts)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_products_and_their_gradients_are_those_of_each_row_with_its_matrix(
    level: str, shape: tuple[int, int, int], num_threads: int
) -> None:
    torch.set_num_threads(num_threads)  # on which the kernels run
    x, weight, of_y, counts, experts = _parts(*shape)

    def check(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)  # float32 sums of up to 300 products

    check(grouped_linear(x, weight, counts), torch.einsum("ak,ank->an", x.double(), weight[experts].double()))
    check(gradient_of_x(of_y, weight, counts), torch.einsum("an,ank->ak", of_y.double(), weight[experts].double()))
    before = torch.full_like(weight, 3.0)
    added = torch.zeros(shape, dtype=torch.float64).index_add(0, experts, torch.einsum("an,ak->ank", of_y.double(), x.double()))
    for adds in (True, False):
        out = before.clone()
        write_gradient_of_weight(of_y, x, counts, out, adds=adds)
        check(out, torch.where((counts > 0)[:, None, None], added + 3.0 * adds, 3.0))


def test_no_rows_at_all_write_nothing(level: str) -> None:
    weight, none = torch.ones(2, 4, 3), torch.tensor([0, 0])
    assert grouped_linear(torch.zeros(0, 3), weight, none).shape == (0, 4)
    write_gradient_of_weight(torch.zeros(0, 4), torch.zeros(0, 3), none, weight, adds=False)
    assert weight.eq(1).all()


def test_what_c_cannot_check_is_refused() -> None:
    weight, counts = torch.zeros(2, 4, 3), torch.tensor([1, 1])
    with pytest.raises(ShapeError, match=r"x has shape \[2, 4\]; expected \[any, 3\]"):
        grouped_linear(torch.zeros(2, 4), weight, counts)
    with pytest.raises(ShapeError, match="weight of shape"):
        grouped_linear(torch.zeros(2, 4), weight.transpose(1, 2), counts)
    with pytest.raises(ConfigError, match="of_y has dtype"):
        gradient_of_x(torch.zeros(2, 4, dtype=torch.float64), weight, counts)
    with pytest.raises(ShapeError, match=r"counts has shape \[3\]"):
        grouped_linear(torch.zeros(2, 3), weight, torch.tensor([1, 1, 0]))
    with pytest.raises(ShapeError, match="counts sum to 3, and there are 2 rows"):
        grouped_linear(torch.zeros(2, 3), weight, torch.tensor([1, 2]))
