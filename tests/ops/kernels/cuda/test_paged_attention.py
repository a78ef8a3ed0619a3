"""The Triton kernels, in Triton's interpreter, against the reference over scattered blocks."""

from __future__ import annotations

import pytest
import torch

from tripod.ops.paged_attention import paged_chunk
from tripod.ops.paged_attention import write_pages as write_reference

pytest.importorskip("triton", reason="the kernels for GPUs need the package triton (pip install triton)")

from tripod.ops.kernels.cuda.paged_attention import Tiles, paged_attention, write_pages

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
    return Tiles(int32(request_), int32(row_), int32(count_), int32(start_), size, -(-max(s + c for _, _, c, s in tiles) // PART), PART)


@pytest.mark.parametrize("window", [None, 5, PART + 3])
@pytest.mark.parametrize(("group", "head_dim", "block_size"), [(1, 16, 16), (3, 20, 8)])
def test_tiles_of_decodes_and_chunks_equal_the_reference(group: int, head_dim: int, block_size: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
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
    for tiles in (tiles_of(1, decodes=True), tiles_of(8, decodes=False)):
        paged_attention(query, keys, values, tables, tiles, scale=0.3, window=window, out=out)
    torch.testing.assert_close(out, torch.cat(expected), atol=2e-5, rtol=2e-5)


def test_half_precision_pages_are_read_as_they_are() -> None:
    keys, values = torch.randn(2, 4, 16, G, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    query = torch.randn(1, G, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    tiles = Tiles(int32([0]), int32([0]), int32([1]), int32([40]), 1, 1)
    out = paged_attention(query, keys, values, torch.tensor([[3, 0, 2]]), tiles, scale=0.25)
    expected = paged_chunk(query.float(), keys.float(), values.float(), torch.tensor([3, 0, 2]), start=40, scale=0.25, window=None)
    torch.testing.assert_close(out.float(), expected, atol=1e-2, rtol=1e-2)  # bfloat16 keeps 8 bits


def test_new_keys_and_values_go_where_the_reference_puts_them_and_padding_goes_nowhere() -> None:
    joint = torch.randn(5, 3 * G, 6)  # the rows of a projection whose slices are not contiguous
    key, value = joint[:, :G], joint[:, 2 * G :]
    slots = torch.tensor([7, 0, -1, 31, 12])
    pages = torch.zeros(2, 8, 4, G, 6)
    expected = pages.clone()
    write_pages(pages[0], pages[1], slots, key, value)
    kept = slots >= 0
    write_reference(expected[0], slots[kept], key[kept])
    write_reference(expected[1], slots[kept], value[kept])
    assert torch.equal(pages, expected)
