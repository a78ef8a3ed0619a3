"""What the machine can do at this moment: memory it reads in a second, and products it makes in registers. For benchmarks.

A measurement of a kernel means little without the two beside it: the same machine reads 30 or 70 GB/s from one minute to the next.
"""

from __future__ import annotations

import ctypes
import time

import torch
from torch import Tensor

from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor
from tripod.ops.kernels.cpu.linear import FORMATS
from tripod.ops.linear_formats import LinearFormat

_read = KernelFunction("tripod_probe_read", POINTER, ctypes.c_int64, restype=ctypes.c_int32)
_multiply = KernelFunction("tripod_probe_multiply", ctypes.c_int32, ctypes.c_int64, restype=ctypes.c_int64)


def read_sum(buffer: Tensor) -> int:
    """Read a buffer once with all threads; the sum of its 32-bit words, modulo 2^32, up to the last whole line of 64 bytes."""
    expect_tensor("buffer", buffer, (None,), (torch.uint8,))
    return int(_read(buffer.data_ptr(), buffer.numel()))


def bytes_per_second(buffer: Tensor) -> float:
    """How fast all threads together read a buffer, which should be many times as large as the caches."""
    start = time.perf_counter()
    read_sum(buffer)
    return buffer.numel() / (time.perf_counter() - start)


def operations_per_second(weight_format: LinearFormat, rounds: int = 200_000) -> float:
    """Multiplications and additions of all threads together, with nothing but registers in the way; int4 multiplies as int8."""
    start = time.perf_counter()
    operations = _multiply(FORMATS[weight_format], rounds)
    return float(operations / (time.perf_counter() - start))
