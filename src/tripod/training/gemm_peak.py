"""What the machine's matrix multiplication reaches: the measure of how well a training step uses it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from tripod.ops.onednn_linear import has_onednn_linear, onednn_linear

_SIZES = {"cpu": 1536, "cuda": 8192}
_NUM_TRIES = 5


def measure_gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product, by the fastest that torch has: the best of a few tries."""
    size = _SIZES.get(device.type, 4096)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[], Tensor]] = [lambda: torch.matmul(a, b)]
    if has_onednn_linear(a):  # which is what our layers take
        products.append(lambda: onednn_linear(a, b, None))
    best_s = float("inf")
    for product in products:
        for _ in range(_NUM_TRIES + 1):
            _synchronize(device)
            began_s = time.perf_counter()
            product()
            _synchronize(device)
            best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * size**3 / best_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
