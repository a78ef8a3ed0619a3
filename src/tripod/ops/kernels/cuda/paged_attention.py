"""Paged attention for NVIDIA GPUs, in Triton: the twin of `tripod.ops.paged_attention`. Not yet measured on a GPU.

Queries are taken in tiles: consecutive tokens of one request, all query heads that share a key/value head. A tile reads its request's keys
through the block table, once, with the online softmax of FlashAttention (Dao et al. 2022, arXiv:2205.14135). A long context is read by
several programs, each a part of fixed length, whose results are then joined (Flash-Decoding). The length of a part does not depend on
the batch, so neither does the order in which a row's sums are made.
"""

# N tokens of the step, T tiles, R requests, M blocks of the longest, H query heads, G key/value heads, K head size, P parts of a context

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 256
_BLOCK_N = 32  # keys at a time
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # numpy, which then multiplies, has no bfloat16
_MIN_DOT = 16  # rows of the smallest matrix that tl.dot takes


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries of a step in groups of at most `size` tokens of one request."""

    request: Tensor  # [T], int32: row of the block tables
    row: Tensor  # [T], int32: first row of the batch
    count: Tensor  # [T], int32: tokens; 0: the tile is padding
    start: Tensor  # [T], int32: position of the first token in its request
    size: int
    num_parts: int  # P: of the longest context
    part: int = PART  # tokens of a context that one program reads


@triton.jit  # type: ignore[untyped-decorator]
def _write(pages_k, pages_v, new_k, new_v, slots, stride_k, stride_v, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    if slot >= 0:
        place = slot * WIDTH + column
        tl.store(pages_k + place, tl.load(new_k + row * stride_k + column, mask=mask).to(pages_k.dtype.element_ty), mask=mask)
        tl.store(pages_v + place, tl.load(new_v + row * stride_v + column, mask=mask).to(pages_v.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, pages_k, pages_v, result, part_result, part_max, part_sum, tables, requests, rows, counts, starts,
    stride_query, stride_result, stride_table, scale, window,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr, HAS_WINDOW: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + tile)
    start = tl.load(starts + tile)
    end = start + count  # tokens that the last query of the tile sees, at most
    begin = part * PART
    stop = tl.minimum(begin + PART, end)
    if HAS_WINDOW:
        begin = tl.maximum(begin, ((start - window + 1) // BLOCK_N) * BLOCK_N)
    if (count > 0) & (part * PART < end):
        first_row = tl.load(rows + tile)
        table = tables + tl.load(requests + tile) * stride_table
        line = tl.arange(0, BLOCK_M)  # token * GROUP + head in the group
        token, head = line // GROUP, kv_head * GROUP + line % GROUP
        is_query = token < count
        column = tl.arange(0, BLOCK_K)
        has_column = column < K
        place = (first_row + token)[:, None] * stride_query + head[:, None] * K + column[None, :]
        q = tl.load(query + place, mask=is_query[:, None] & has_column[None, :], other=0.0)
        position = start + token
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mixed = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for n in range(begin, stop, BLOCK_N):
            key_position = n + tl.arange(0, BLOCK_N)
            is_key = key_position < stop
            block = tl.load(table + key_position // BLOCK_SIZE, mask=is_key, other=0)
            slot = block.to(tl.int64) * BLOCK_SIZE + key_position % BLOCK_SIZE
            key_place = (slot[:, None] * NUM_KV_HEADS + kv_head) * K + column[None, :]
            key_mask = is_key[:, None] & has_column[None, :]
            k = tl.load(pages_k + key_place, mask=key_mask, other=0.0)
            v = tl.load(pages_v + key_place, mask=key_mask, other=0.0)
            if UPCAST:
                q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
            score = tl.dot(q.to(k.dtype), tl.trans(k), input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
            seen = is_key[None, :] & (key_position[None, :] <= position[:, None])
            if HAS_WINDOW:
                seen = seen & (key_position[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(score, axis=1))
            safe = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # a query that sees none of these keys
            weight = tl.exp(score - safe[:, None])
            kept = tl.exp(highest - safe)
            total = total * kept + tl.sum(weight, axis=1)
            mixed = mixed * kept[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            highest = new_highest
        store_mask = is_query[:, None] & has_column[None, :]
        row = first_row + token
        if NUM_PARTS == 1:
            out = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
            out_place = row[:, None] * stride_result + head[:, None] * K + column[None, :]
            tl.store(result + out_place, out.to(result.dtype.element_ty), mask=store_mask)
        else:
            summary = (row * (NUM_KV_HEADS * GROUP) + head) * NUM_PARTS + part
            tl.store(part_result + summary[:, None] * K + column[None, :], mixed, mask=store_mask)
            tl.store(part_max + summary, highest, mask=is_query)
            tl.store(part_sum + summary, total, mask=is_query)


@triton.jit  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    result, part_result, part_max, part_sum, requests, rows, counts, starts, stride_result,
    NUM_HEADS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
    NUM_PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    tile, head, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + tile)
    end = tl.load(starts + tile) + count
    if token < count:
        row = tl.load(rows + tile) + token
        part = tl.arange(0, BLOCK_P)
        is_part = part * PART < end
        column = tl.arange(0, BLOCK_K)
        summary = (row * NUM_HEADS + head) * NUM_PARTS + part
        highest = tl.load(part_max + summary, mask=is_part, other=float("-inf"))
        total = tl.load(part_sum + summary, mask=is_part, other=0.0)
        weight = tl.exp(highest - tl.max(highest, axis=0))
        mask = is_part[:, None] & (column < K)[None, :]
        mixed = tl.load(part_result + summary[:, None] * K + column[None, :], mask=mask, other=0.0)
        out = tl.sum(mixed * weight[:, None], axis=0) / tl.sum(total * weight, axis=0)
        tl.store(result + row * stride_result + head * K + column, out.to(result.dtype.element_ty), mask=column < K)


def write_pages(keys: Tensor, values: Tensor, slots: Tensor, key: Tensor, value: Tensor) -> None:
    """Store each token's key and value in its slot, in place.

    Args:
        keys: [num_blocks, block_size, G, K], contiguous.
        values: as keys.
        slots: [N], int64; no slot twice; below 0 the token is not stored.
        key: [N, G, K], of any floating dtype; the last two dimensions contiguous.
        value: as key.
    """
    width = keys.shape[2] * keys.shape[3]
    if len(slots):
        _write[(len(slots),)](
            keys, values, key, value, slots, key.stride(0), value.stride(0), WIDTH=width, BLOCK=triton.next_power_of_2(width)
        )


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    tiles: Tiles,
    *,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Each query of the tiles sees itself and the tokens before it in its own request.

    Args:
        query: [N, H, K]; the last two dimensions contiguous.
        keys: [num_blocks, block_size, G, K], contiguous; the queries' own keys are written already.
        values: as keys.
        block_tables: [R, M], int64, the last dimension contiguous.
        tiles: which rows belong together; a step with chunks and decodes calls once for each size of tile.
        scale: factor on the dot products.
        window: how many tokens a query sees, itself included; None is all.
        out: [N, H, K], contiguous; rows that no tile holds stay as they are. None takes a new one.

    Returns:
        `out`.
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, block_size = keys.shape[2], keys.shape[1]
    group = num_heads // num_kv_heads
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    parts = tiles.num_parts
    shape = (len(query), num_heads, parts if parts > 1 else 0)
    part_result = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
    part_max, part_sum = torch.empty((2, *shape), dtype=torch.float32, device=query.device)
    of_tiles = (tiles.request, tiles.row, tiles.count, tiles.start)
    block_k = max(_MIN_DOT, triton.next_power_of_2(head_dim))
    _attend[(len(tiles.row), num_kv_heads, parts)](
        query, keys, values, out, part_result, part_max, part_sum, block_tables, *of_tiles,
        query.stride(0), out.stride(0), block_tables.stride(0), scale, window or 0,
        NUM_KV_HEADS=num_kv_heads, GROUP=group, K=head_dim, BLOCK_K=block_k, BLOCK_SIZE=block_size,
        BLOCK_M=max(_MIN_DOT, triton.next_power_of_2(tiles.size * group)), BLOCK_N=_BLOCK_N, PART=tiles.part, NUM_PARTS=parts,
        HAS_WINDOW=window is not None, UPCAST=_IS_INTERPRETED,
    )  # fmt: skip
    if parts > 1:
        _join[(len(tiles.row), num_heads, tiles.size)](
            out, part_result, part_max, part_sum, *of_tiles, out.stride(0),
            NUM_HEADS=num_heads, K=head_dim, BLOCK_K=block_k, TILE=tiles.size, PART=tiles.part, NUM_PARTS=parts,
            BLOCK_P=triton.next_power_of_2(parts),
        )  # fmt: skip
    return out
