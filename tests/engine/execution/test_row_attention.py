"""A row that attends beside others gets the bits that it gets alone, on as many threads as torch likes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tripod.engine.execution.ragged_batch import RaggedBatch, Span
from tripod.engine.execution.row_attention import SLOTS, RowAttention, attend_alike

NUM_ROWS = 8
SHAPES = ((12, 1, 64), (2, 7, 64), (3, 1, 8), (4, 2, 80))  # key/value heads, queries of each, head size
SCALE = 0.125


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def a_mask(num_slots: int, generator: torch.Generator) -> Tensor:
    """Rows at places of the last `SLOTS`."""
    positions = torch.randint(num_slots - SLOTS, num_slots, (NUM_ROWS, 1), generator=generator)
    return torch.zeros(NUM_ROWS, num_slots).masked_fill(torch.arange(num_slots) > positions, float("-inf"))


def expected(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """[B, H, K] by torch, in float64."""
    grouped = query.double().view(len(query), keys.shape[2], -1, query.shape[-1])
    seen = [tensor.double().transpose(1, 2).expand(len(query), -1, -1, -1) for tensor in (keys, values)]
    return scaled_dot_product_attention(grouped, *seen, attn_mask=mask.double()[:, None, None], scale=SCALE).reshape(query.shape)


@pytest.mark.parametrize("is_shared", [False, True], ids=["keys of its own", "keys of one request"])
@pytest.mark.parametrize("num_slots", [SLOTS, 3 * SLOTS, 9 * SLOTS])
@pytest.mark.parametrize(("num_kv_heads", "num_queries", "head_dim"), SHAPES)
def test_neighbours_change_no_bit(
    threads: int, num_kv_heads: int, num_queries: int, head_dim: int, num_slots: int, is_shared: bool
) -> None:
    generator = torch.Generator().manual_seed(num_slots + head_dim)
    query = torch.randn(NUM_ROWS, num_kv_heads * num_queries, head_dim, generator=generator)
    shape = (1 if is_shared else NUM_ROWS, num_slots, num_kv_heads, head_dim)
    keys, values = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    mask = a_mask(num_slots, generator)

    def attended(rows: Tensor) -> Tensor:
        own = slice(None) if is_shared else rows
        return attend_alike(query[rows], keys[own], values[own], mask[rows], SCALE)

    alone = torch.cat([attended(torch.tensor([row])) for row in range(NUM_ROWS)])
    assert torch.allclose(alone.double(), expected(query, keys, values, mask), atol=1e-5)  # sums of 576 numbers of about 1
    for count in range(2, NUM_ROWS + 1):
        rows = torch.randperm(NUM_ROWS, generator=generator)[:count]
        assert torch.equal(attended(rows), alone[rows]), f"{count} rows"


def test_float64_stays_float64_and_slots_that_nobody_sees_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(NUM_ROWS, 4, 16, generator=generator).double()
    keys, values = (torch.randn(NUM_ROWS, 10 * SLOTS, 2, 16, generator=generator).double() for _ in range(2))
    mask = a_mask(10 * SLOTS, generator)
    mask[:, :512] = float("-inf")  # torch goes through 512 slots at a time
    attended = attend_alike(query, keys, values, mask, SCALE)
    assert torch.allclose(attended, expected(query, keys, values, mask), atol=1e-14)


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("block_size", [3, 24, 128])
def test_a_sequence_gets_the_same_bits_in_chunks_of_any_size(threads: int, block_size: int, window: int | None) -> None:
    """150 tokens beside another sequence, in chunks that cross the borders of slots, and one by one."""
    num_tokens, num_heads, head_dim = 150, 6, 16
    generator = torch.Generator().manual_seed(block_size)
    num_blocks = -(-num_tokens // block_size)
    tables = torch.randperm(2 * num_blocks, generator=generator).view(2, num_blocks)
    query, key, value = (torch.randn(2, num_tokens, num_heads, head_dim, generator=generator) for _ in range(3))

    def whole(chunks: list[int], others: list[int]) -> Tensor:
        """[150, H, K] of the first sequence; the second goes on by so many tokens beside each chunk."""
        pages, results = torch.zeros(1, 2, 2 * num_blocks, block_size, num_heads, head_dim), []
        ends = zip(itertools.accumulate(chunks), itertools.accumulate(others), strict=True)
        for (end, other_end), count, other in zip(ends, chunks, others, strict=True):
            own, beside = range(end - count, end), range(other_end - other, other_end)
            places = [(0, position) for position in own] + [(1, position) for position in beside]
            requests, positions = torch.tensor(places).T
            slots = tables[requests, positions // block_size] * block_size + positions % block_size
            spans = [Span(slice(0, count), own.start), Span(slice(count, count + other), beside.start)][: 2 if other else 1]
            taken = -(-max(span.end for span in spans) // block_size)
            batch = RaggedBatch(torch.stack([positions, positions, slots, requests]), tables[: len(spans), :taken], tuple(spans))
            attend = RowAttention(pages, batch)
            new = [tensor[requests, positions] for tensor in (query, key, value)]
            results.append(attend(0, *new, scale=SCALE, window=window)[:count])
        return torch.cat(results)

    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    is_seen = (distance >= 0) & (distance < (window or num_tokens))
    mask = torch.zeros(num_tokens, num_tokens).masked_fill(~is_seen, float("-inf"))
    one_by_one = whole([1] * num_tokens, [0] * num_tokens)
    assert torch.allclose(one_by_one.double(), expected(query[0], key[:1], value[:1], mask), atol=1e-5)
    for chunks, others in (([150], [0]), ([150], [150]), ([60, 1, 60, 29], [1, 80, 0, 3]), ([100, 50], [1, 1])):
        assert torch.equal(whole(chunks, others), one_by_one), (chunks, others)
