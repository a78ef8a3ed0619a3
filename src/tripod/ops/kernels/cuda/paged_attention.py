"""Paged attention for NVIDIA GPUs, in Triton: the twin of `tripod.ops.paged_attention`, which rotates queries and keys as well.

A step of decodes is one launch a layer: a program for each request and key/value head rotates the new key, stores it, and lets the query
heads that share it see it and what stands before. Otherwise tokens are placed first, and queries then taken in tiles: consecutive tokens
of one request, all query heads that share a key/value head. Both read a request's keys through the block table, once, with the online
softmax of FlashAttention (Dao et al. 2022, arXiv:2205.14135). A long context is read by several programs, each a part, whose results are
then joined (Flash-Decoding).
"""

# N tokens of the step, T tiles, R requests, M blocks of the longest, H query heads, G key/value heads, K head size, P parts of a context,
# A angles: half of the numbers of a head that are rotated

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 256
_BLOCK_N = 32  # keys at a time, of tiles
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # numpy, which then multiplies, has no bfloat16
_MIN_DOT = 16  # rows of the smallest matrix that tl.dot takes
_VARYING = ["stride_table", "num_parts", "window"]  # from step to step: no kernel is compiled for one value of them


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries of a step in groups of at most `size` tokens of one request."""

    request: Tensor  # [T], int32: row of the block tables
    row: Tensor  # [T], int32: first row of the batch
    count: Tensor  # [T], int32: tokens; 0: the tile is padding
    start: Tensor  # [T], int32: position of the first token in its request
    size: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What queries and keys go through before they meet: an RMSNorm of each head, in some models, then the rotation."""

    cos: Tensor  # [max_positions, A], float32
    sin: Tensor
    query_norm: Tensor | None = None  # [K]
    key_norm: Tensor | None = None
    eps: float = 0.0


@triton.jit  # type: ignore[untyped-decorator]
def _turned(x, place, column, is_number, cos, sin, norm, eps, K: tl.constexpr, ANGLES: tl.constexpr, HAS_NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Heads of one token, [heads, BLOCK_K], float32. `x + place` is where each begins, [heads, 1]."""
    value = tl.load(x + place + column[None, :], mask=is_number, other=0.0).to(tl.float32)
    if ANGLES > 0:
        is_first = column < ANGLES
        is_turned = column < 2 * ANGLES
        partner = tl.where(is_first, column + ANGLES, column - ANGLES)
        other = tl.load(x + place + partner[None, :], mask=is_number & is_turned[None, :], other=0.0).to(tl.float32)
        if HAS_NORM:
            factor = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / K + eps)
            value = value * factor[:, None] * tl.load(norm + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
            other = other * factor[:, None] * tl.load(norm + partner, mask=is_turned, other=0.0).to(tl.float32)[None, :]
        angle = tl.where(is_first, column, column - ANGLES)
        turn = tl.load(sin + angle, mask=is_turned, other=0.0)
        turn = tl.where(is_first, -turn, turn)
        value = value * tl.load(cos + angle, mask=is_turned, other=1.0)[None, :] + other * turn[None, :]
    return value


@triton.jit  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]
    query, key, value, turned, pages_k, pages_v, slots, positions, cos, sin, query_norm, key_norm, eps,
    stride_query, stride_key, stride_value,
    HEAD_STRIDE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, K: tl.constexpr,
    BLOCK_K: tl.constexpr, ANGLES: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    row, kv_head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    position = tl.load(positions + row)
    column = tl.arange(0, BLOCK_K)
    one = tl.arange(0, 1)[:, None]
    has_column = column[None, :] < K
    cos_row, sin_row = cos + position * ANGLES, sin + position * ANGLES
    if ANGLES > 0:
        head = kv_head * GROUP + tl.arange(0, BLOCK_G)
        is_number = (tl.arange(0, BLOCK_G)[:, None] < GROUP) & has_column
        source = row * stride_query + head[:, None] * HEAD_STRIDE
        q = _turned(query, source, column, is_number, cos_row, sin_row, query_norm, eps, K, ANGLES, HAS_NORM)
        target = turned + (row * (NUM_KV_HEADS * GROUP) + head)[:, None] * K + column[None, :]
        tl.store(target, q.to(turned.dtype.element_ty), mask=is_number)
    if slot >= 0:
        place = (slot * NUM_KV_HEADS + kv_head) * K + one + column[None, :]
        k = _turned(
            key, row * stride_key + kv_head * HEAD_STRIDE + one, column, has_column, cos_row, sin_row, key_norm, eps, K, ANGLES, HAS_NORM
        )
        v = tl.load(value + row * stride_value + kv_head * HEAD_STRIDE + one + column[None, :], mask=has_column)
        tl.store(pages_k + place, k.to(pages_k.dtype.element_ty), mask=has_column)
        tl.store(pages_v + place, v.to(pages_v.dtype.element_ty), mask=has_column)


@triton.jit(do_not_specialize=_VARYING)  # type: ignore[untyped-decorator]
def _decode(  # type: ignore[no-untyped-def]
    query, key, value, pages_k, pages_v, result, part_result, part_max, part_sum, slots, positions, tables,
    cos, sin, query_norm, key_norm, eps, stride_query, stride_key, stride_value, stride_result, stride_table, num_parts, scale, window,
    HEAD_STRIDE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, K: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, ANGLES: tl.constexpr,
    HAS_NORM: tl.constexpr, IS_SPLIT: tl.constexpr, HAS_WINDOW: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row)
    position = tl.load(positions + row).to(tl.int32)
    begin = part * PART
    if begin <= position:
        column = tl.arange(0, BLOCK_K)
        has_column = column[None, :] < K
        one = tl.arange(0, 1)[:, None]
        cos_row, sin_row = cos + position * ANGLES, sin + position * ANGLES
        head = kv_head * GROUP + tl.arange(0, BLOCK_G)
        is_head = tl.arange(0, BLOCK_G) < GROUP
        is_query = is_head[:, None] & has_column
        source = row * stride_query + head[:, None] * HEAD_STRIDE
        q = _turned(query, source, column, is_query, cos_row, sin_row, query_norm, eps, K, ANGLES, HAS_NORM)
        k = _turned(
            key, row * stride_key + kv_head * HEAD_STRIDE + one, column, has_column, cos_row, sin_row, key_norm, eps, K, ANGLES, HAS_NORM
        )
        v = tl.load(value + row * stride_value + kv_head * HEAD_STRIDE + one + column[None, :], mask=has_column, other=0.0)
        # Rounded as the next step will read it. The key is seen by the program that reads the end of the context, which also stores it.
        k, v = k.to(pages_k.dtype.element_ty), v.to(pages_v.dtype.element_ty)
        is_last = position < begin + PART
        if is_last & (slot >= 0):
            place = (slot * NUM_KV_HEADS + kv_head) * K + one + column[None, :]
            tl.store(pages_k + place, k, mask=has_column)
            tl.store(pages_v + place, v, mask=has_column)
        if GROUP > 1 and not UPCAST:
            q = q.to(pages_k.dtype.element_ty).to(tl.float32)  # as it is multiplied with the keys before
        own = tl.sum(q * k.to(tl.float32), axis=1) * scale
        highest = tl.where(is_last, own, float("-inf"))
        total = tl.zeros([BLOCK_G], tl.float32) + tl.where(is_last, 1.0, 0.0)
        mixed = total[:, None] * v.to(tl.float32)
        stop = tl.minimum(begin + PART, position)
        if HAS_WINDOW:
            begin = tl.maximum(begin, position - window + 1)
        for n in range(begin, stop, BLOCK_N):
            key_position = n + tl.arange(0, BLOCK_N)
            is_key = key_position < stop
            block = tl.load(tables + row * stride_table + key_position // BLOCK_SIZE, mask=is_key, other=0)
            old = block.to(tl.int64) * BLOCK_SIZE + key_position % BLOCK_SIZE
            key_place = (old[:, None] * NUM_KV_HEADS + kv_head) * K + column[None, :]
            key_mask = is_key[:, None] & has_column
            old_k = tl.load(pages_k + key_place, mask=key_mask, other=0.0)
            old_v = tl.load(pages_v + key_place, mask=key_mask, other=0.0)
            if UPCAST:
                old_k, old_v = old_k.to(tl.float32), old_v.to(tl.float32)
            if GROUP == 1:
                score = tl.sum(q * old_k.to(tl.float32), axis=1)[None, :] * scale  # [1, BLOCK_N]
            else:
                score = tl.dot(q.to(old_k.dtype), tl.trans(old_k), input_precision="ieee") * scale  # [BLOCK_G, BLOCK_N]
            score = tl.where(is_key[None, :], score, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(score, axis=1))  # finite: each turn of the loop sees a key
            weight = tl.exp(score - new_highest[:, None])
            kept = tl.exp(highest - new_highest)
            total = total * kept + tl.sum(weight, axis=1)
            if GROUP == 1:
                mixed = mixed * kept[:, None] + tl.sum(tl.trans(weight) * old_v.to(tl.float32), axis=0)[None, :]
            else:
                mixed = mixed * kept[:, None] + tl.dot(weight.to(old_v.dtype), old_v, input_precision="ieee")
            highest = new_highest
        if IS_SPLIT:
            summary = (row * (NUM_KV_HEADS * GROUP) + head) * num_parts + part
            tl.store(part_result + summary[:, None] * K + column[None, :], mixed, mask=is_query)
            tl.store(part_max + summary, highest, mask=is_head)
            tl.store(part_sum + summary, total, mask=is_head)
        else:
            out_place = row * stride_result + head[:, None] * K + column[None, :]
            tl.store(result + out_place, (mixed / total[:, None]).to(result.dtype.element_ty), mask=is_query)


@triton.jit(do_not_specialize=_VARYING)  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, pages_k, pages_v, result, part_result, part_max, part_sum, tables, requests, rows, counts, starts,
    stride_query, stride_result, stride_table, num_parts, scale, window,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, IS_SPLIT: tl.constexpr, HAS_WINDOW: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + tile)
    start = tl.load(starts + tile)
    end = start + count  # tokens that the last query of the tile sees, at most
    begin = part * PART
    stop = tl.minimum(begin + PART, end)
    if HAS_WINDOW:
        begin = tl.maximum(begin, start - window + 1)
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
        if IS_SPLIT:
            summary = (row * (NUM_KV_HEADS * GROUP) + head) * num_parts + part
            tl.store(part_result + summary[:, None] * K + column[None, :], mixed, mask=store_mask)
            tl.store(part_max + summary, highest, mask=is_query)
            tl.store(part_sum + summary, total, mask=is_query)
        else:
            out = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
            out_place = row[:, None] * stride_result + head[:, None] * K + column[None, :]
            tl.store(result + out_place, out.to(result.dtype.element_ty), mask=store_mask)


@triton.jit(do_not_specialize=_VARYING)  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    result, part_result, part_max, part_sum, positions, stride_result, num_parts,
    NUM_HEADS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, PART: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    part = tl.arange(0, BLOCK_P)
    is_part = part * PART <= tl.load(positions + row)
    column = tl.arange(0, BLOCK_K)
    summary = (row * NUM_HEADS + head) * num_parts + part
    highest = tl.load(part_max + summary, mask=is_part, other=float("-inf"))
    total = tl.load(part_sum + summary, mask=is_part, other=0.0)
    weight = tl.exp(highest - tl.max(highest, axis=0))
    mask = is_part[:, None] & (column < K)[None, :]
    mixed = tl.load(part_result + summary[:, None] * K + column[None, :], mask=mask, other=0.0)
    out = tl.sum(mixed * weight[:, None], axis=0) / tl.sum(total * weight, axis=0)
    tl.store(result + row * stride_result + head * K + column, out.to(result.dtype.element_ty), mask=column < K)


def _turn_arguments(turn: Turn | None, key: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, float], dict[str, object]]:
    if turn is None:
        return (key, key, key, key, 0.0), {"ANGLES": 0, "HAS_NORM": False}
    norms = (key, key) if turn.query_norm is None or turn.key_norm is None else (turn.query_norm, turn.key_norm)
    return (turn.cos, turn.sin, *norms, turn.eps), {"ANGLES": turn.cos.shape[1], "HAS_NORM": turn.query_norm is not None}


def place_tokens(
    keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor, query: Tensor, key: Tensor, value: Tensor, turn: Turn | None = None
) -> Tensor:
    """Store each token's turned key and its value in its slot, in place, and turn its query.

    Args:
        keys: [num_blocks, block_size, G, K], contiguous.
        values: as keys.
        slots: [N], int64; no slot twice; below 0 the token is not stored.
        positions: [N], int64.
        query: [N, H, K]; the three have heads of contiguous numbers, and from head to head the same stride.
        key: [N, G, K].
        value: [N, G, K].
        turn: None: they are turned already.

    Returns:
        [N, H, K], contiguous if turned here.
    """
    num_kv_heads, head_dim = keys.shape[2:]
    group = query.shape[1] // num_kv_heads
    turned = query if turn is None else torch.empty(query.shape, dtype=query.dtype, device=query.device)
    arguments, constants = _turn_arguments(turn, key)
    if len(slots):
        _place[(len(slots), num_kv_heads)](
            query, key, value, turned, keys, values, slots, positions, *arguments,
            query.stride(0), key.stride(0), value.stride(0),
            HEAD_STRIDE=key.stride(1), NUM_KV_HEADS=num_kv_heads, GROUP=group, BLOCK_G=triton.next_power_of_2(group), K=head_dim,
            BLOCK_K=max(_MIN_DOT, triton.next_power_of_2(head_dim)), num_warps=1, **constants,
        )  # fmt: skip
    return turned


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    *,
    num_parts: int,
    scale: float,
    window: int | None = None,
    turn: Turn | None = None,
    out: Tensor,
    part: int = PART,
) -> Tensor:
    """`place_tokens` and `paged_attention` at once, where each token is of another request: that of its row in the block tables.

    Args:
        slots: [N], int64; below 0 a token is padding, which is not stored; at position 0 it sees itself alone.
        num_parts: at least that of the longest context.
        out: [N, H, K], its last two dimensions contiguous.

    Returns:
        `out`.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = keys.shape[2], keys.shape[1]
    group = num_heads // num_kv_heads
    parts = _Parts(num_tokens, num_heads, head_dim, num_parts, query.device)
    arguments, constants = _turn_arguments(turn, key)
    # Few programs that read little each should read it at once; many should each hold little. As measured on an H100.
    block_n, num_warps = (64, 4) if part < PART else (32, 2)
    block_k = max(_MIN_DOT, triton.next_power_of_2(head_dim))
    _decode[(num_tokens, num_kv_heads, num_parts)](
        query, key, value, keys, values, out, *parts.tensors, slots, positions, block_tables, *arguments,
        query.stride(0), key.stride(0), value.stride(0), out.stride(0), block_tables.stride(0), num_parts, scale, window or 0,
        HEAD_STRIDE=key.stride(1), NUM_KV_HEADS=num_kv_heads, GROUP=group,
        BLOCK_G=1 if group == 1 else max(_MIN_DOT, triton.next_power_of_2(group)), K=head_dim, BLOCK_K=block_k,
        BLOCK_SIZE=block_size, BLOCK_N=block_n, PART=part, IS_SPLIT=num_parts > 1, HAS_WINDOW=window is not None,
        UPCAST=_IS_INTERPRETED, num_warps=num_warps, **constants,
    )  # fmt: skip
    return parts.joined(out, positions, part)


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    positions: Tensor,
    tiles: Sequence[Tiles],
    *,
    num_parts: int,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
    part: int = PART,
) -> Tensor:
    """Each query of the tiles sees itself and the tokens before it in its own request.

    Args:
        query: [N, H, K]; the last two dimensions contiguous.
        keys: [num_blocks, block_size, G, K], contiguous; the queries' own keys are written already.
        values: as keys.
        block_tables: [R, M], int64, the last dimension contiguous.
        positions: [N], int64: the place of each token in its request.
        tiles: which rows belong together, by the size of tile; each row is in one of them.
        num_parts: of the longest context.
        scale: factor on the dot products.
        window: how many tokens a query sees, itself included; None is all.
        out: [N, H, K], the last two dimensions contiguous; None takes a new one.
        part: tokens of a context that one program reads.

    Returns:
        `out`.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = keys.shape[2], keys.shape[1]
    group = num_heads // num_kv_heads
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
    parts = _Parts(num_tokens, num_heads, head_dim, num_parts, query.device)
    for group_of_tiles in tiles:
        _attend[(len(group_of_tiles.row), num_kv_heads, num_parts)](
            query, keys, values, out, *parts.tensors, block_tables,
            group_of_tiles.request, group_of_tiles.row, group_of_tiles.count, group_of_tiles.start,
            query.stride(0), out.stride(0), block_tables.stride(0), num_parts, scale, window or 0,
            NUM_KV_HEADS=num_kv_heads, GROUP=group, K=head_dim, BLOCK_K=max(_MIN_DOT, triton.next_power_of_2(head_dim)),
            BLOCK_SIZE=block_size, BLOCK_M=max(_MIN_DOT, triton.next_power_of_2(group_of_tiles.size * group)), BLOCK_N=_BLOCK_N,
            PART=part, IS_SPLIT=num_parts > 1, HAS_WINDOW=window is not None, UPCAST=_IS_INTERPRETED,
        )  # fmt: skip
    return parts.joined(out, positions, part)


class _Parts:
    """What programs that read different parts of a context found, to be joined; nothing where there is one part."""

    def __init__(self, num_tokens: int, num_heads: int, head_dim: int, num_parts: int, device: torch.device) -> None:
        shape = (num_tokens, num_heads, num_parts if num_parts > 1 else 0)
        part_max, part_sum = torch.empty((2, *shape), dtype=torch.float32, device=device)
        self.tensors = (torch.empty((*shape, head_dim), dtype=torch.float32, device=device), part_max, part_sum)

    def joined(self, out: Tensor, positions: Tensor, part: int) -> Tensor:
        num_tokens, num_heads, num_parts = self.tensors[1].shape
        head_dim = out.shape[-1]
        if num_parts:
            _join[(num_tokens, num_heads)](
                out, *self.tensors, positions, out.stride(0), num_parts,
                NUM_HEADS=num_heads, K=head_dim, BLOCK_K=triton.next_power_of_2(head_dim), PART=part,
                BLOCK_P=triton.next_power_of_2(num_parts), num_warps=2,
            )  # fmt: skip
        return out
