"""Cross-entropy in place, beside its reference, on every level of processor that runs here."""

from __future__ import annotations

import pytest
import torch

from tripod.errors import ConfigError, ShapeError
from tripod.ops import cross_entropy as reference
from tripod.ops.kernels.cpu import cross_entropy as kernels
from tripod.ops.kernels.cpu.library import is_available, level_forced, why_not

pytestmark = pytest.mark.skipif(not is_available(), reason=f"no CPU kernels: {why_not()}")


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("level", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 7, 64, 259, 4099])  # none, part, whole and many vectors
def test_losses_and_gradients_are_those_of_the_reference(level: str, dtype: torch.dtype, size: int, num_threads: int) -> None:
    torch.set_num_threads(num_threads)  # on which the kernels run
    generator = torch.Generator().manual_seed(size)
    logits = (torch.randn(9, size, generator=generator) * 4.0).to(dtype)
    targets = torch.randint(size, (9,), generator=generator)
    expected_gradient = logits.clone()
    expected = reference.cross_entropy_(expected_gradient, targets, 0.5)
    gradient = logits.clone()
    try:
        with level_forced(level):
            losses = kernels.cross_entropy_(gradient, targets, 0.5)
            alone = kernels.cross_entropy_(logits.clone(), targets, 0.5, wants_gradient=False)
    except ConfigError as error:
        pytest.skip(str(error))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone, losses)
    # bfloat16: both round the same number, which differs in float32's last bits
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-6)


def test_sums_of_bfloat16_are_rounded_once() -> None:
    sums, parts = torch.randn(41, 103), torch.randn(41, 103).bfloat16()
    expected = sums + parts.float()
    kernels.accumulate_bf16_(sums, parts)
    assert torch.equal(sums, expected)


def test_targets_of_another_number_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"targets has shape \[3\]; expected \[2\]"):
        kernels.cross_entropy_(torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64), 1.0)
