"""A test that asks for several threads gives them back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tripod.ops.kernels.cpu.library import is_available
from tripod.ops.kernels.cpu.threads import set_num_threads


@pytest.fixture(autouse=True)
def _one_thread_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    if is_available():
        set_num_threads(1)
