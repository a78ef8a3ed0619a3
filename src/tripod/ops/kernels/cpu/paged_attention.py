"""Causal attention over paged keys and values: decodes and chunks of prompts, mixed in one call.

The torch reference is `tripod.ops.paged_attention`. Here a row has the same bits whether it is computed alone, among others, as a decode
or within a chunk of any size, wherever its blocks lie.
"""

# N rows, R requests, M blocks of the longest request, L layers, H query heads, G key/value heads, K head size, P: K rounded up to 16

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.library import POINTER, KernelFunction, expect_tensor

BLOCK_SIZE = 16  # tokens of a block: the lanes of one vector
MAX_HEAD_DIM = 512
_LARGE_PAGE = 2**21  # bytes

_INT, _INT64 = ctypes.c_int, ctypes.c_int64
_LAYER = (POINTER, _INT64, _INT, _INT, _INT)  # words, blocks, heads, head size, format
_HEADS = (POINTER, _INT, _INT64, _INT64)  # numbers, whether bfloat16, strides of rows and heads
_write_kv = KernelFunction("tripod_write_kv", *_LAYER, *_HEADS, *_HEADS, POINTER, _INT64, restype=_INT64)
_copy_blocks = KernelFunction("tripod_copy_blocks", POINTER, _INT64, *_LAYER[1:], POINTER, _INT64, restype=_INT64)
_paged_attention = KernelFunction(
    "tripod_paged_attention",
    *(*_LAYER, *_HEADS, POINTER, _INT, _INT64, POINTER, POINTER, POINTER, _INT64, _INT64, ctypes.c_float, _INT64),
    restype=_INT64,
)
_DTYPES = (torch.float32, torch.bfloat16)
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of the pool, as kv_cache.hpp numbers them
_SCALE_BYTES = 4 * BLOCK_SIZE  # in 8 bits: a float32 for each token's key, and for its value, after the numbers of a block


def why_no_pool(*, block_size: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a model with such heads; None when they can."""
    if block_size != BLOCK_SIZE:
        return f"the kernels keep blocks of {BLOCK_SIZE} tokens; block_size={block_size} was asked for"
    if dtype not in _FORMATS:
        return f"the kernels keep keys and values in float32, bfloat16 or int8; {dtype} was asked for"
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        return f"the kernels take heads of 1 to {MAX_HEAD_DIM} numbers; head_dim={head_dim} was asked for"
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        return f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class KVPool:
    """The keys and values of all layers, in the kernels' layout (drawn in kv_cache.hpp)."""

    blocks: Tensor  # [L, num_blocks, G, 2, 16 P], float32 or bfloat16, or [.., 16 P + 64], int8 and scales; of the 2, keys come first
    head_dim: int  # K

    @classmethod
    def allocate(cls, *, num_layers: int, num_blocks: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> Self:
        """A pool of blocks of 16 tokens; int8 rounds each key and each value to whole numbers of -127..127 with a scale of its own.

        Raises:
            ConfigError: the kernels cannot keep such heads.
        """
        reason = why_no_pool(block_size=BLOCK_SIZE, num_heads=num_kv_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
        if reason is not None:
            raise ConfigError(reason)
        padded = -(-head_dim // 16) * 16
        size = BLOCK_SIZE * padded + (_SCALE_BYTES if dtype == torch.int8 else 0)
        return cls(_zeros((num_layers, num_blocks, num_kv_heads, 2, size), dtype), head_dim)

    @property
    def format(self) -> int:
        """As the kernels number it."""
        return _FORMATS[self.blocks.dtype]

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Store the keys and values of tokens in one layer, in place.

        Args:
            layer: counts from 0.
            key: [N, G, K], float32 or bfloat16; rounded to the type of the pool. Rows and heads may have gaps between them.
            value: as key.
            slots: [N], int64: block id * 16 + place in the block; no slot twice.

        Raises:
            ShapeError: the shapes do not fit each other or the pool.
            ConfigError: a type that the kernels do not take, or a slot that the pool does not have.
        """
        num_rows = slots.shape[0] if slots.ndim else 0
        expect_tensor("slots", slots, (num_rows,), (torch.int64,))
        shape = (num_rows, self.blocks.shape[2], self.head_dim)
        _expect_heads("key", key, shape)
        _expect_heads("value", value, shape)
        wrong = _write_kv(*self._layer(layer), *_heads(key), *_heads(value), slots.data_ptr(), num_rows)
        if wrong >= 0:
            raise ConfigError(f"slots[{wrong}]={int(slots[wrong])} is not one of the pool's {BLOCK_SIZE * self.blocks.shape[1]} slots")

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers: pairs of source and target; no target is also a source.

        Raises:
            ConfigError: a block that the pool does not have.
        """
        flat = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        num_layers, num_blocks, num_kv_heads, _, _ = self.blocks.shape
        wrong = _copy_blocks(
            self.blocks.data_ptr(), num_layers, num_blocks, num_kv_heads, self.head_dim, self.format, flat.data_ptr(), flat.shape[0]
        )
        if wrong >= 0:
            raise ConfigError(f"blocks {tuple(pairs[wrong])} cannot be copied: the pool has blocks 0 to {num_blocks - 1}")

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and the values of one layer as the reference lays them out: twice [num_blocks, 16, G, K], copies; of int8 as float32."""
        _, num_blocks, num_kv_heads, _, _ = self.blocks.shape
        pack = 1 if self.blocks.dtype == torch.float32 else 2  # numbers that stand together, of a token or of two
        blocks = self.blocks[layer]
        if self.blocks.dtype == torch.int8:
            blocks, scales = blocks[..., :-_SCALE_BYTES], blocks[..., -_SCALE_BYTES:].clone().view(torch.float32)  # [.., G, 2, 16]
        keys, values = (part.contiguous() for part in blocks.unbind(2))
        keys = keys.view(num_blocks, num_kv_heads, -1, BLOCK_SIZE, pack).permute(0, 3, 1, 2, 4)  # [.., 16, G, P/pack, pack]
        values = values.view(num_blocks, num_kv_heads, BLOCK_SIZE // pack, -1, pack).permute(0, 2, 4, 1, 3)  # [.., 16/pack, pack, G, P]
        shape = (num_blocks, BLOCK_SIZE, num_kv_heads, -1)
        keys, values = keys.reshape(shape)[..., : self.head_dim], values.reshape(shape)[..., : self.head_dim]
        if self.blocks.dtype == torch.int8:
            by_token = scales.permute(2, 0, 3, 1)[..., None]  # [2, num_blocks, 16, G, 1]
            keys, values = keys * by_token[0], values * by_token[1]
        return keys, values

    def _layer(self, layer: int) -> tuple[int, int, int, int, int]:
        _, num_blocks, num_kv_heads, _, _ = self.blocks.shape
        if not 0 <= layer < self.blocks.shape[0]:
            raise ConfigError(f"layer={layer} is not one of the pool's {self.blocks.shape[0]}")
        address = self.blocks.data_ptr() + layer * self.blocks.stride(0) * self.blocks.element_size()
        return address, num_blocks, num_kv_heads, self.head_dim, self.format


def paged_attention(
    query: Tensor,
    pool: KVPool,
    layer: int,
    *,
    requests: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Each row sees the tokens of its request up to a place, whose keys and values are written already.

    Scores are summed in float32; unless the pool is float32, queries and softmax weights are rounded to bfloat16 before they meet it.

    Args:
        query: [N, H, K], float32 or bfloat16; query heads H/G * g up to H/G * (g + 1) share key/value head g. Rows and heads may have
            gaps between them.
        pool: keys and values.
        layer: counts from 0.
        requests: [N], int64: the row of block_tables that belongs to each query. Consecutive tokens of a request are computed together.
        positions: [N], int64: the last place in its request that each query sees: its own, or in an encoder that of the text's end.
        block_tables: [R, M], int64; what lies beyond the blocks of a request is not read.
        scale: factor on the dot products, above 0.
        window: how many tokens a query sees, itself included; None is all.

    Returns:
        [N, H, K], in the dtype of query.

    Raises:
        ShapeError: the shapes do not fit each other or the pool.
        ConfigError: a type that the kernels do not take, or a request, position or block that does not exist.
    """
    if query.ndim != 3:
        raise ShapeError(f"query has shape {list(query.shape)}; expected [N, H, K]")
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = pool.blocks.shape[2]
    _expect_heads("query", query, (num_rows, num_heads, pool.head_dim))
    if num_heads % num_kv_heads:
        raise ShapeError(f"query has {num_heads} heads; expected a multiple of the pool's {num_kv_heads}")
    expect_tensor("requests", requests, (num_rows,), (torch.int64,))
    expect_tensor("positions", positions, (num_rows,), (torch.int64,))
    expect_tensor("block_tables", block_tables, (None, None), (torch.int64,))
    if not scale > 0:
        raise ConfigError(f"scale={scale} is not a factor on scores; give one above 0, usually 1 / sqrt({head_dim})")
    if window is not None and window < 1:
        raise ConfigError(f"window={window} lets a query see nothing; give at least 1, or None for all tokens")
    out = torch.empty((num_rows, num_heads, head_dim), dtype=query.dtype, device="cpu")
    num_tables, table_width = block_tables.shape
    wrong = _paged_attention(
        *(*pool._layer(layer), *_heads(query), out.data_ptr(), num_heads, num_rows, requests.data_ptr(), positions.data_ptr()),
        *(block_tables.data_ptr(), num_tables, table_width, scale, window or 0),
    )
    if wrong >= 0:
        raise ConfigError(
            f"row {wrong} (request {int(requests[wrong])}, position {int(positions[wrong])}) needs what is not there: "
            f"{num_tables} requests of at most {table_width * BLOCK_SIZE} tokens, in blocks 0 to {pool.blocks.shape[1] - 1}"
        )
    return out


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that the system gives page by page when it is first written to: a pool of gigabytes is there at once."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < _LARGE_PAGE:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    pages = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _expect_heads(name: str, tensor: Tensor, shape: tuple[int, int, int]) -> None:
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}")
    if tensor.dtype not in _DTYPES or tensor.device.type != "cpu":
        raise ConfigError(f"{name} is {tensor.dtype} on {tensor.device}; expected float32 or bfloat16 in main memory")
    if tensor.shape[2] > 1 and tensor.stride(2) != 1:
        raise ShapeError(
            f"{name} has strides {list(tensor.stride())}: the numbers of a head must follow one another; pass a contiguous copy"
        )


def _heads(tensor: Tensor) -> tuple[int, bool, int, int]:
    return tensor.data_ptr(), tensor.dtype == torch.bfloat16, tensor.stride(0), tensor.stride(1)
