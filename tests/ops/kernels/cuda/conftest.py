"""Kernels for GPUs are interpreted on the CPU; `TRITON_INTERPRET=0 pytest tests/ops/kernels/cuda` runs the same tests on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET", "1") == "1" else "cuda"


@pytest.fixture(autouse=True)
def _on_device() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device("cpu")
