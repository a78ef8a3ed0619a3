"""A row that attends beside others gets the bits that it gets alone, on as many threads as torch likes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tripod.engine.execution.row_attention import SLOTS, attend_alike

NUM_ROWS = 8
SHAPES = ((12, 1, 64), (2, 7, 64), (3, 1, 8), (4, 2, 80))  # key/value heads, queries of each, head size


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


@pytest.mark.parametrize("is_shared", [False, True], ids=["keys of its own", "keys of one request"])
@pytest.mark.parametrize("num_slots", [SLOTS, 3 * SLOTS, 9 * SLOTS])
@pytest.mark.parametrize(("num_kv_heads", "num_queries", "head_dim"), SHAPES)
def test_neighbours_change_no_bit(
    threads: int, num_kv_heads: int, num_queries: int, head_dim: int, num_slots: int, is_shared: bool
) -> None:
    generator = torch.Generator().manual_seed(num_slots + head_dim)
    num_requests = 1 if is_shared else NUM_ROWS
    query = torch.randn(NUM_ROWS, num_kv_heads * num_queries, head_dim, generator=generator)
    keys, values = (torch.randn(num_requests, num_slots, num_kv_heads, head_dim, generator=generator).bfloat16() for _ in range(2))
    mask = a_mask(num_slots, generator)

    def attended(rows: Tensor) -> Tensor:
        own = slice(None) if is_shared else rows
        return attend_alike(query[rows], keys[own], values[own], mask[rows], 0.125)

    alone = torch.cat([attended(torch.tensor([row])) for row in range(NUM_ROWS)])
    for count in range(2, NUM_ROWS + 1):
        rows = torch.randperm(NUM_ROWS, generator=generator)[:count]
        assert torch.equal(attended(rows), alone[rows]), f"{count} rows"
    grouped = query.double().view(NUM_ROWS, num_kv_heads, num_queries, head_dim)
    expected = scaled_dot_product_attention(
        grouped,
        *(tensor.double().transpose(1, 2).expand(NUM_ROWS, -1, -1, -1) for tensor in (keys, values)),
        attn_mask=mask.double()[:, None, None],
        scale=0.125,
    )
    assert torch.allclose(alone.double(), expected.reshape(query.shape), atol=1e-5)
