"""Row operations in one call over all threads: norms, rotation, look-up and argmax.

Rows are of float32 or bfloat16; between reading and writing the arithmetic is in float32. Weights and biases of norms are float32.
"""

# N rows, D row length, H heads, K head size, R rotary size, V vocabulary

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor

_DTYPES = (torch.float32, torch.bfloat16)
_INT, _INT64, _FLOAT = ctypes.c_int, ctypes.c_int64, ctypes.c_float
_layer_norm = KernelFunction("tripod_layer_norm", POINTER, POINTER, POINTER, POINTER, _FLOAT, POINTER, _INT, _INT64, _INT64)
_rms_norm = KernelFunction("tripod_rms_norm", POINTER, POINTER, POINTER, _FLOAT, POINTER, _INT, _INT64, _INT64)
_rotate = KernelFunction(
    "tripod_rotate", POINTER, _INT64, _INT64, POINTER, _INT64, _INT64, _INT, POINTER, POINTER, _INT64, _INT, _INT64, _INT64
)
_embedding = KernelFunction("tripod_embedding", POINTER, _INT64, POINTER, _INT, _INT64, _INT64, POINTER, _INT, restype=_INT64)
_argmax = KernelFunction("tripod_argmax", POINTER, _INT, _INT64, _INT64, POINTER)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, add: Tensor | None = None) -> Tensor:
    """Rows to mean 0 and variance 1, then weight and bias (Ba et al. 2016, arXiv:1607.06450), as torch.nn.functional.layer_norm.

    Args:
        x: [..., D], contiguous.
        weight: [D], float32.
        bias: [D], float32; None is zero.
        eps: added to the variance, dimensionless.
        add: [..., D] in the dtype of x, added to x in place first: the residual stream and its norm in one pass.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ShapeError: shapes that do not fit, or gaps between elements.
        ConfigError: a dtype or device that the kernels do not take.
    """
    num_rows, size = _rows(x, weight, add)
    if bias is not None:
        expect_tensor("bias", bias, (size,), (torch.float32,))
    out = torch.empty_like(x)
    bias_at, add_at = (None if one is None else one.data_ptr() for one in (bias, add))
    _layer_norm(x.data_ptr(), add_at, weight.data_ptr(), bias_at, eps, out.data_ptr(), x.dtype == torch.bfloat16, num_rows, size)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, add: Tensor | None = None) -> Tensor:
    """Rows to unit root mean square: the twin of `tripod.ops.rms_norm`, for rows and for the heads of queries and keys alike.

    Args:
        x: [..., D], contiguous.
        weight: [D], float32.
        eps: added to the mean square, dimensionless.
        add: [..., D] in the dtype of x, added to x in place first: the residual stream and its norm in one pass.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ShapeError: shapes that do not fit, or gaps between elements.
        ConfigError: a dtype or device that the kernels do not take.
    """
    num_rows, size = _rows(x, weight, add)
    out = torch.empty_like(x)
    add_at = None if add is None else add.data_ptr()
    _rms_norm(x.data_ptr(), add_at, weight.data_ptr(), eps, out.data_ptr(), x.dtype == torch.bfloat16, num_rows, size)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The twin of `tripod.ops.rope.rotate`: plane i, numbers i and i + R/2 of each head, turned by the angle of its token.

    Args:
        x: [N, H, K]; rows and heads may have gaps between them, as within a fused projection.
        cos: [N, 1, R/2], float32, as `Rope` gives them.
        sin: as cos.
        out: where the result goes, shaped as x and of its dtype; it may be x. None: new.

    Returns:
        [N, H, K] in the dtype of x; computed in float32, where the reference computes in the dtype of x.

    Raises:
        ShapeError: shapes that do not fit, or gaps within a head.
        ConfigError: a dtype or device that the kernels do not take.
    """
    if x.ndim != 3:
        raise ShapeError(f"x has shape {list(x.shape)}; expected [N, H, K]")
    num_rows, num_heads, size = x.shape
    half = cos.shape[-1]
    if 2 * half > size:
        raise ShapeError(f"cos turns {2 * half} numbers of a head; x has heads of {size}")
    expect_tensor("cos", cos, (num_rows, 1, half), (torch.float32,))
    expect_tensor("sin", sin, (num_rows, 1, half), (torch.float32,))
    out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    for name, tensor in (("x", x), ("out", out)):
        if tensor.shape != x.shape or tensor.stride(2) != 1:
            raise ShapeError(
                f"{name} has shape {list(tensor.shape)} and strides {list(tensor.stride())}; expected {list(x.shape)}, gapless heads"
            )
        if tensor.dtype not in _DTYPES or tensor.dtype != x.dtype or tensor.device.type != "cpu":
            raise ConfigError(f"{name} is {tensor.dtype} on {tensor.device}; expected float32 or bfloat16 in main memory, out as x")
    _rotate(
        *(x.data_ptr(), x.stride(0), x.stride(1), out.data_ptr(), out.stride(0), out.stride(1), x.dtype == torch.bfloat16),
        *(cos.data_ptr(), sin.data_ptr(), num_rows, num_heads, size, half),
    )
    return out


def embedding(ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of a table, as torch.nn.functional.embedding, in the dtype asked for.

    Args:
        ids: [N], int64.
        table: [V, D], float32 or bfloat16, contiguous.
        dtype: float32 or bfloat16.

    Returns:
        [N, D].

    Raises:
        ShapeError: shapes that do not fit, or gaps between elements.
        ConfigError: a dtype or device that the kernels do not take, or an id that the table does not have.
    """
    expect_tensor("ids", ids, (None,), (torch.int64,))
    expect_tensor("table", table, (None, None), _DTYPES)
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype} of an embedding; the kernels give float32 or bfloat16")
    out = torch.empty((ids.shape[0], table.shape[1]), dtype=dtype)
    is_bf16 = table.dtype == torch.bfloat16
    wrong = _embedding(ids.data_ptr(), ids.shape[0], table.data_ptr(), is_bf16, *table.shape, out.data_ptr(), dtype == torch.bfloat16)
    if wrong >= 0:
        raise ConfigError(f"ids[{wrong}]={int(ids[wrong])} is not one of the table's {table.shape[0]} rows")
    return out


def argmax(x: Tensor) -> Tensor:
    """The place of each row's largest number, the first of equals; NaN counts as the largest, as in torch.

    Args:
        x: [N, V], float32 or bfloat16, contiguous.

    Returns:
        [N], int64.

    Raises:
        ShapeError: x is not a matrix, has no columns, or has gaps between its elements.
        ConfigError: a dtype or device that the kernels do not take.
    """
    expect_tensor("x", x, (None, None), _DTYPES)
    if x.shape[1] < 1:
        raise ShapeError(f"x has shape {list(x.shape)}: an empty row has no largest number")
    out = torch.empty(x.shape[0], dtype=torch.int64)
    _argmax(x.data_ptr(), x.dtype == torch.bfloat16, *x.shape, out.data_ptr())
    return out


def _rows(x: Tensor, weight: Tensor, add: Tensor | None) -> tuple[int, int]:
    if x.ndim < 1 or not x.shape[-1]:
        raise ShapeError(f"x has shape {list(x.shape)}; expected [..., D] with D of at least 1")
    expect_tensor("x", x, tuple(x.shape), _DTYPES)
    expect_tensor("weight", weight, (x.shape[-1],), (torch.float32,))
    if add is not None:
        expect_tensor("add", add, tuple(x.shape), (x.dtype,))
    return math.prod(x.shape[:-1]), x.shape[-1]
