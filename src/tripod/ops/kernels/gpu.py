"""Which tensors go to the kernels for GPUs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
_LEAST_CAPABILITY = (9, 0)  # Hopper, where tiles were chosen and timed; older GPUs have less shared memory than those need


def is_for_gpu(*tensors: Tensor) -> bool:
    """Whether they lie on a GPU, in one dtype for which the kernels are the faster ones, nothing is cast on the way, and Triton is here."""
    first = tensors[0]
    return (
        first.device.type == "cuda"
        and first.dtype in DTYPES
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and not torch.is_autocast_enabled("cuda")
        and torch.cuda.get_device_capability(first.device) >= _LEAST_CAPABILITY
        and has_triton()
    )


@cache
def has_triton() -> bool:
    """Whether the compiler of these kernels is installed."""
    return find_spec("triton") is not None
