"""Root mean square normalisation: by hand, and reduced in float32 whatever comes in."""

from __future__ import annotations

import pytest
import torch

from tripod.errors import ShapeError
from tripod.ops.rms_norm import rms_norm


def test_three_and_four_have_a_root_mean_square_of_five_over_the_root_of_two() -> None:
    normed = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]), eps=0.0)
    torch.testing.assert_close(normed, torch.tensor([[0.8485281, 11.3137085]]))  # 3 sqrt(2) / 5 and 40 sqrt(2) / 5


def test_epsilon_keeps_nothing_from_becoming_infinite() -> None:
    assert torch.equal(rms_norm(torch.zeros(1, 4), torch.ones(4), eps=1e-6), torch.zeros(1, 4))


def test_bfloat16_is_rounded_once_at_the_end() -> None:
    x = torch.randn(5, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (x.double() / x.double().square().mean(-1, keepdim=True).sqrt()).bfloat16()
    close = torch.isclose(rms_norm(x, torch.ones(2048).bfloat16(), eps=0.0), expected, rtol=2**-8, atol=0.0)  # the next bfloat16 at most
    assert close.all()


def test_a_weight_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"weight has shape \[3\]; expected \[4\]"):
        rms_norm(torch.zeros(1, 4), torch.ones(3), eps=0.0)
