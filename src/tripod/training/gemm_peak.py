"""What the machine's matrix multiplication reaches: the measure of how well a training step uses it."""

from __future__ import annotations

import time

import torch

_SIZES = {"cpu": 1024, "cuda": 8192}
_NUM_TRIES = 5


def measure_gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product: the best of a few, after one to warm up."""
    size = _SIZES.get(device.type, 4096)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(_NUM_TRIES + 1):
        _synchronize(device)
        began_s = time.perf_counter()
        torch.matmul(a, b)
        _synchronize(device)
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * size**3 / best_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
