"""Which tensors go to the kernels for GPUs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
_LEAST_CAPABILITY = (9, 0)  # Hopper, where tiles were chosen and timed; older GPUs have less shared memory than those need


def is_for_gpu(*tensors: Tensor) -> bool:
    """Whether they lie where the kernels run, in one dtype for which those are the faster ones, and nothing is cast on the way."""
    first = tensors[0]
    return (
        first.dtype in DTYPES
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and runs_kernels(first.device)
        and not torch.is_autocast_enabled("cuda")
    )


def runs_kernels(device: torch.device) -> bool:
    """Whether it is a GPU for which the kernels were made, and their compiler is here."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY and has_triton()


@cache
def has_triton() -> bool:
    """Whether the compiler of these kernels is installed."""
    return find_spec("triton") is not None
