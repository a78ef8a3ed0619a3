"""Which tensors the kernels for GPUs take."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def is_for_gpu(*tensors: Tensor) -> bool:
    """Whether they lie on a GPU, in one dtype that the kernels know, nothing is cast on the way, and Triton is here."""
    first = tensors[0]
    return (
        first.device.type == "cuda"
        and first.dtype in DTYPES
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and not torch.is_autocast_enabled("cuda")
        and _has_triton()
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
