"""The Triton kernels against the reference, over scattered blocks."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels.cuda.conftest import DEVICE
from tripod.ops.paged_attention import paged_chunk
from tripod.ops.paged_attention import write_pages as write_reference
from tripod.ops.rms_norm import rms_norm
from tripod.ops.rope import rotate

pytest.importorskip("triton", reason="the kernels for GPUs need the package triton (pip install triton)")

from tripod.ops.kernels.cuda.paged_attention import Tiles, Turn, decode_attention, paged_attention, place_tokens

PART, NUM_BLOCKS, G = 32, 16, 2
CASES = [(12, 1), (0, 7), (2 * PART + 5, 1), (PART - 1, 1), (PART - 5, 11)]  # tokens before, tokens of the step


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def tiles_of(size: int, *, decodes: bool) -> Tiles:
    tiles, row = [], 0
    for request, (start, count) in enumerate(CASES):
        if (count == 1) == decodes:
            tiles += [(request, row + i, min(size, count - i), start + i) for i in range(0, count, size)]
        row += count
    request_, row_, count_, start_ = map(list, zip(*tiles, strict=True))
    return Tiles(int32(request_), int32(row_), int32(count_), int32(start_), size)


@pytest.mark.parametrize("window", [None, 5, PART + 3])
@pytest.mark.parametrize(("group", "head_dim", "block_size"), [(1, 16, 16), (3, 20, 8)])
def test_tiles_of_decodes_and_chunks_equal_the_reference(group: int, head_dim: int, block_size: int, window: int | None) -> None:
    generator = torch.Generator(DEVICE).manual_seed(1)
    num_blocks = NUM_BLOCKS * 16 // block_size
    keys, values = torch.randn(2, num_blocks * 2, block_size, G, head_dim, generator=generator)
    tables = torch.zeros(len(CASES), num_blocks, dtype=torch.int64)
    queries, expected = [], []
    for row, (start, count) in enumerate(CASES):
        blocks = torch.randperm(num_blocks * 2, generator=generator)[: -(-(start + count) // block_size)]
        tables[row, : len(blocks)] = blocks
        query = torch.randn(count, G * group, head_dim, generator=generator)
        queries.append(query)
        expected.append(paged_chunk(query, keys, values, blocks, start=start, scale=0.3, window=window))
    query, out = torch.cat(queries), torch.full((sum(count for _, count in CASES), G * group, head_dim), torch.nan)
    positions = torch.cat([torch.arange(start, start + count) for start, count in CASES])
    tiles = (tiles_of(1, decodes=True), tiles_of(8, decodes=False))
    paged_attention(query, keys, values, tables, positions, tiles, num_parts=3, scale=0.3, window=window, out=out, part=PART)
    torch.testing.assert_close(out, torch.cat(expected), atol=2e-5, rtol=2e-5)


def test_half_precision_pages_are_read_as_they_are() -> None:
    keys, values = torch.randn(2, 4, 16, G, 16, generator=torch.Generator(DEVICE).manual_seed(2)).bfloat16()
    query = torch.randn(1, G, 16, generator=torch.Generator(DEVICE).manual_seed(3)).bfloat16()
    tiles = Tiles(int32([0]), int32([0]), int32([1]), int32([40]), 1)
    out = paged_attention(query, keys, values, torch.tensor([[3, 0, 2]]), torch.tensor([40]), [tiles], num_parts=1, scale=0.25)
    expected = paged_chunk(query.float(), keys.float(), values.float(), torch.tensor([3, 0, 2]), start=40, scale=0.25, window=None)
    torch.testing.assert_close(out.float(), expected, atol=1e-2, rtol=1e-2)  # bfloat16 keeps 8 bits


def test_new_keys_and_values_go_where_the_reference_puts_them_and_padding_goes_nowhere() -> None:
    joint = torch.randn(5, 3 * G, 6)  # the rows of a projection whose slices are not contiguous
    query, key, value = joint.split(G, dim=1)
    slots = torch.tensor([7, 0, -1, 31, 12])
    pages = torch.zeros(2, 8, 4, G, 6)
    expected = pages.clone()
    place_tokens(pages[0], pages[1], slots, torch.arange(5), query, key, value)
    kept = slots >= 0
    write_reference(expected[0], slots[kept], key[kept])
    write_reference(expected[1], slots[kept], value[kept])
    assert torch.equal(pages, expected)


DECODES = [0, 12, PART - 1, PART, 2 * PART + 5]  # tokens before each


@pytest.mark.parametrize(("group", "has_norm"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("num_parts", "window"), [(4, None), (3, PART + 3), (1, None)])
def test_decodes_turn_place_and_attend_as_the_references_do_one_after_the_other(
    group: int, has_norm: bool, num_parts: int, window: int | None
) -> None:
    generator = torch.Generator(DEVICE).manual_seed(4)
    head_dim, block_size, num_rows = 20, 8, len(DECODES) + 1  # the last is padding
    heads = G * group
    keys, values = torch.randn(2, 64, block_size, G, head_dim, generator=generator)
    joint = torch.randn(num_rows, heads + 2 * G, head_dim, generator=generator)
    query, key, value = joint.split([heads, G, G], dim=1)
    tables = torch.randperm(64, generator=generator)[: 10 * len(DECODES)].view(len(DECODES), 10)
    positions = torch.tensor([*DECODES, 0])
    slots = torch.tensor([int(tables[i, p // block_size]) * block_size + p % block_size for i, p in enumerate(DECODES)] + [-1])
    angles = torch.rand(100, 6, generator=generator)  # 12 of the 20 numbers of a head are rotated
    norms = torch.rand(2, head_dim, generator=generator) if has_norm else [None, None]
    turn = Turn(angles.cos(), angles.sin(), norms[0], norms[1], 1e-5)
    part = PART if num_parts > 1 else 128
    pages, out = torch.stack((keys, values)), torch.full((num_rows, heads, head_dim), torch.nan)
    padded = torch.cat((tables, tables[:1]))
    decode_attention(
        query, key, value, pages[0], pages[1], slots, positions, padded,
        num_parts=num_parts, scale=0.3, window=window, turn=turn, out=out, part=part,
    )  # fmt: skip
    cos, sin = angles.cos()[positions][:, None], angles.sin()[positions][:, None]
    if has_norm:
        query, key = rms_norm(query, norms[0], 1e-5), rms_norm(key, norms[1], 1e-5)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    write_reference(keys, slots[:-1], key[:-1])
    write_reference(values, slots[:-1], value[:-1])
    torch.testing.assert_close(pages, torch.stack((keys, values)), atol=1e-6, rtol=1e-6)
    for row, start in enumerate(DECODES):
        expected = paged_chunk(query[row : row + 1], keys, values, tables[row], start=start, scale=0.3, window=window)
        torch.testing.assert_close(out[row : row + 1], expected, atol=2e-5, rtol=2e-5)


def test_placed_queries_are_turned_as_the_reference_turns_them() -> None:
    joint = torch.randn(3, 2, 3, 8, generator=torch.Generator(DEVICE).manual_seed(5))  # head by head: query, key, value
    query, key, value = joint.unbind(2)
    angles = torch.rand(9, 2)
    positions, pages = torch.tensor([8, 0, 3]), torch.zeros(2, 1, 4, 2, 8)
    turned = place_tokens(pages[0], pages[1], torch.arange(3), positions, query, key, value, Turn(angles.cos(), angles.sin()))
    cos, sin = angles.cos()[positions][:, None], angles.sin()[positions][:, None]
    torch.testing.assert_close(turned, rotate(query, cos, sin), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pages[0, 0, :3], rotate(key, cos, sin), atol=1e-6, rtol=1e-6)
    assert torch.equal(pages[1, 0, :3], value)
