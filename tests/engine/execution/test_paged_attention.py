"""Paged = contiguous: a ragged batch over scattered blocks gives what whole-sequence attention gives."""

from __future__ import annotations

import pytest
import torch

from tripod.engine.execution.kv_cache import KVCacheSpec
from tripod.engine.execution.paged_attention import PagedAttention, TorchKVCache
from tripod.engine.execution.ragged_batch import RaggedBatch, Span
from tripod.engine.policy.request import Request
from tripod.ops.attention import causal_attention
from tripod.sampling import GREEDY

BLOCK_SIZE, NUM_BLOCKS, G, K = 4, 40, 2, 8


def _request(name: str, num_tokens: int, num_computed: int, block_ids: list[int]) -> Request:
    request = Request(id=name, prompt_ids=tuple(range(num_tokens)), sampling=GREEDY, max_tokens=9)
    request.block_ids, request.num_computed_tokens = block_ids, num_computed
    return request


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize(
    "cases",  # (tokens known, tokens computed before this step) of each request
    [
        [(1, 0)],
        [(13, 12)],
        [(13, 0)],
        [(13, 5)],
        [(16, 15), (16, 15)],
        [(3, 2), (17, 16), (9, 8)],
        [(7, 6), (11, 3), (1, 0), (12, 0), (16, 15)],
    ],
    ids=str,
)
def test_a_ragged_batch_equals_attention_over_each_whole_sequence(cases: list[tuple[int, int]], window: int | None, num_heads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    kv_cache = torch.randn(2, 2, NUM_BLOCKS, BLOCK_SIZE, G, K, generator=generator)  # other requests' leavings
    schedule: dict[Request, int] = {}
    expected, queries, keys, values = [], [], [], []
    for number, (num_tokens, num_computed) in enumerate(cases):
        blocks = [free.pop() for _ in range(-(-num_tokens // BLOCK_SIZE) + number % 2)]  # some own one more than they need
        request = _request(str(number), num_tokens, num_computed, blocks)
        schedule[request] = num_tokens - num_computed
        query = torch.randn(num_tokens, num_heads, K, generator=generator)
        key, value = torch.randn(2, num_tokens, G, K, generator=generator)
        for position in range(num_computed):
            block, offset = blocks[position // BLOCK_SIZE], position % BLOCK_SIZE
            kv_cache[1, 0, block, offset], kv_cache[1, 1, block, offset] = key[position], value[position]
        whole = causal_attention(1, query[None], key[None], value[None], scale=0.3, window=window)[0]
        expected.append(whole[num_computed:])
        queries.append(query[num_computed:])
        keys.append(key[num_computed:])
        values.append(value[num_computed:])
    before = kv_cache[0].clone()
    attend = PagedAttention(kv_cache, RaggedBatch.of(schedule, BLOCK_SIZE, torch.device("cpu")))
    result = attend(1, torch.cat(queries), torch.cat(keys), torch.cat(values), scale=0.3, window=window)
    torch.testing.assert_close(result, torch.cat(expected), atol=1e-6, rtol=1e-5)  # float32, sums in another order
    assert torch.equal(kv_cache[0], before), "another layer was written"


def test_tokens_keep_their_places_in_the_ragged_batch() -> None:
    decoding = _request("d", 6, 5, [9, 2])
    chunk = _request("c", 9, 2, [4, 1, 7])
    batch = RaggedBatch.of({decoding: 1, chunk: 3}, BLOCK_SIZE, torch.device("cpu"))
    assert batch.token_ids.tolist() == [5, 2, 3, 4]
    assert batch.positions.tolist() == [5, 2, 3, 4]
    assert batch.slots.tolist() == [2 * 4 + 1, 4 * 4 + 2, 4 * 4 + 3, 1 * 4 + 0]
    assert batch.requests.tolist() == [0, 1, 1, 1]
    assert batch.block_tables.tolist() == [[9, 2], [4, 1]]
    assert batch.spans == (Span(slice(0, 1), 5), Span(slice(1, 4), 2))
    assert [span.end for span in batch.spans] == [6, 5]


def test_blocks_are_copied_in_all_layers_and_cleared_where_asked() -> None:
    spec = KVCacheSpec(num_layers=2, num_blocks=6, block_size=4, num_kv_heads=G, head_dim=K, dtype=torch.float32)
    cache = TorchKVCache(spec, torch.device("cpu"))
    cache.pages.copy_(torch.randn(spec.shape, generator=torch.Generator().manual_seed(1)))
    before = cache.pages.clone()
    cache.copy_blocks([(1, 4), (2, 0)])
    assert torch.equal(cache.pages[:, :, [4, 0]], before[:, :, [1, 2]])
    assert torch.equal(cache.pages[:, :, [1, 2, 3, 5]], before[:, :, [1, 2, 3, 5]])
    cache.clear([5, 3], start=3, num_tokens=2)  # the last place of block 5, the first of block 3
    assert cache.pages[:, :, 5, 3].count_nonzero() == cache.pages[:, :, 3, 0].count_nonzero() == 0
    assert torch.equal(cache.pages[:, :, 5, :3], before[:, :, 5, :3])
    assert torch.equal(cache.pages[:, :, 3, 1:], before[:, :, 3, 1:])
