"""The kernels' attention against its definition in float64, and against itself: a row's bits do not depend on its company."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.cpu.levels import level, needs_kernels  # noqa: F401  the fixture
from tripod.errors import ConfigError, ShapeError
from tripod.ops.attention import bidirectional_attention
from tripod.ops.kernels.cpu.paged_attention import KVPool, paged_attention, why_no_pool
from tripod.ops.kernels.cpu.pool_attention import TextAttention
from tripod.ops.kernels.cpu.threads import set_num_threads
from tripod.ops.linear_formats import quantize

pytestmark = [needs_kernels, pytest.mark.usefixtures("level")]

HEADS = [(12, 12, 64), (14, 2, 64), (4, 2, 8), (3, 1, 80), (2, 2, 128), (2, 1, 256)]  # H, G, K
LENGTHS = [150, 64, 1, 65, 16]
# Weights and queries are rounded to bfloat16, which keeps 8 bits; values of size 1 are averaged, so errors do not add up. In int8 the
# rounded weight has a value's scale in it, so even the weight of a lone token, which is 1 in bfloat16, is off by half a unit of 8 bits.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.int8: 1.2e-2}
DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., K] as a pool of this type keeps it, by the reference of the format."""
    if dtype != torch.int8:
        return x.to(dtype)
    values, scales = quantize(x.float())
    return values * scales[..., None]


def query_dtype(dtype: torch.dtype) -> torch.dtype:
    """What queries are rounded to before they meet such keys."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


@dataclass
class Batch:
    """Requests whose tokens are all written, and the query of every token."""

    pool: KVPool
    tables: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    queries: list[Tensor]

    def attend(self, rows: list[tuple[int, int]], window: int | None = None) -> Tensor:
        """The rows of (request, position), in one call."""
        query = torch.stack([self.queries[request][position] for request, position in rows])
        requests, positions = torch.tensor(rows).T.contiguous()
        scale = query.shape[2] ** -0.5
        return paged_attention(
            query, self.pool, 1, requests=requests, positions=positions, block_tables=self.tables, scale=scale, window=window
        )


def batch(heads: tuple[int, int, int], dtype: torch.dtype, *, block_seed: int = 0) -> Batch:
    """Written in an order of blocks that the seed draws, into a pool full of NaN: what nobody wrote must never be read."""
    generator = torch.Generator().manual_seed(7)
    num_heads, num_kv_heads, head_dim = heads
    sizes = [-(-length // 16) for length in LENGTHS]
    pool = KVPool.allocate(num_layers=2, num_blocks=sum(sizes) + 2, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    pool.blocks.view(torch.uint8).fill_(0xFF)  # NaN in every type, and in the scales of int8
    order = torch.randperm(sum(sizes) + 2, generator=torch.Generator().manual_seed(block_seed))
    tables = torch.full((len(LENGTHS), max(sizes)), -1)
    keys, values, queries = [], [], []
    for request, (length, size) in enumerate(zip(LENGTHS, sizes, strict=True)):
        tables[request, :size], order = order[:size], order[size:]
        key, value = torch.randn(2, length, num_kv_heads, head_dim, generator=generator)
        token = torch.arange(length)
        pool.write(1, key, value, tables[request][token // 16] * 16 + token % 16)
        keys.append(rounded(key, dtype))
        values.append(rounded(value, dtype))
        queries.append(torch.randn(length, num_heads, head_dim, generator=generator).to(query_dtype(dtype)).float())
    return Batch(pool, tables, keys, values, queries)


def defined(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """[H, K] query of the last of the tokens [T, G, K] -> [H, K], float64."""
    key, value = (one[-window:] if window else one for one in (key, value))
    key, value = (one.double().repeat_interleave(query.shape[0] // key.shape[1], dim=1) for one in (key, value))
    weights = (torch.einsum("hk,thk->ht", query.double(), key) * query.shape[1] ** -0.5).softmax(-1)
    return torch.einsum("ht,thk->hk", weights, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "window"), [*((heads, None) for heads in HEADS), *((heads, 50) for heads in HEADS), ((4, 2, 8), 1), ((4, 2, 8), 70)]
)
def test_decodes_and_chunks_in_one_call_are_their_definition(heads: tuple[int, int, int], dtype: torch.dtype, window: int | None) -> None:
    made = batch(heads, dtype)
    rows = [*((0, p) for p in range(90, 150)), (1, 63), (2, 0), *((3, p) for p in range(65)), (4, 15), (1, 20)]
    seen = made.attend(rows, window)
    for row, (request, position) in list(enumerate(rows))[::3]:
        key, value = (one[request][: position + 1] for one in (made.keys, made.values))
        expected = defined(made.queries[request][position], key, value, window)
        torch.testing.assert_close(seen[row].double(), expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(12, 12, 64), (14, 2, 64), (3, 1, 80)], ids=str)
@pytest.mark.parametrize("window", [None, 40])
def test_a_row_has_the_same_bits_alone_and_in_chunks_of_any_size(
    heads: tuple[int, int, int], dtype: torch.dtype, window: int | None
) -> None:
    made = batch(heads, dtype)
    whole = made.attend([(0, position) for position in range(150)], window)
    for size in (1, 2, 7, 16, 31, 64, 100):
        for start in range(0, 150, max(size, 13)):  # chunks of one token: every thirteenth
            rows = [(0, position) for position in range(start, min(start + size, 150))]
            assert torch.equal(made.attend(rows, window), whole[start : start + size]), (size, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company_in_any_blocks_on_any_number_of_threads(dtype: torch.dtype) -> None:
    rows = [(request, length - 1) for request, length in enumerate(LENGTHS)]
    made, elsewhere = batch((14, 2, 64), dtype), batch((14, 2, 64), dtype, block_seed=1)
    together = made.attend(rows)
    assert not torch.equal(made.tables, elsewhere.tables)
    assert torch.equal(elsewhere.attend(rows), together)
    assert torch.equal(made.attend(rows[::-1]).flip(0), together)
    assert torch.equal(made.attend([*rows, *((0, position) for position in range(149))])[: len(rows)], together)
    try:
        for count in (1, 2, 5):
            set_num_threads(count)
            assert torch.equal(made.attend(rows), together)
            assert all(torch.equal(made.attend([row])[0], alone) for row, alone in zip(rows, together, strict=True))
    finally:
        set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_in_bfloat16_gives_the_rounded_result_of_the_same_query_in_float32(dtype: torch.dtype) -> None:
    made = batch((4, 2, 8), dtype)
    made.queries = [query.bfloat16().float() for query in made.queries]
    rows = [(0, position) for position in range(100, 150)]
    wide = made.attend(rows)
    made.queries = [query.bfloat16() for query in made.queries]
    assert torch.equal(made.attend(rows), wide.bfloat16())


def test_one_huge_score_takes_all_the_weight_and_nan_stays_in_its_row() -> None:
    made = batch((4, 4, 16), torch.float32)
    made.queries[0][149] = made.keys[0][77] * 1e4
    made.queries[0][148] = float("nan")
    rows = [(0, 147), (0, 148), (0, 149)]
    seen = made.attend(rows)
    torch.testing.assert_close(seen[2], made.values[0][77], atol=0, rtol=1e-6)
    assert seen[1].isnan().all()
    assert torch.equal(seen[0], made.attend(rows[:1])[0])


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        *((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)),
        *((torch.float32, torch.int8), (torch.bfloat16, torch.int8)),
    ],
)
@pytest.mark.parametrize("head_dim", [8, 33, 64])
def test_what_is_written_is_read_back_and_neighbours_stay(source: torch.dtype, kept: torch.dtype, head_dim: int) -> None:
    pool = KVPool.allocate(num_layers=2, num_blocks=3, num_kv_heads=2, head_dim=head_dim, dtype=kept)
    key, value = (torch.randn(48, 2, head_dim, generator=torch.Generator().manual_seed(seed)).to(source) for seed in (1, 2))
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    pool.write(1, key[:30], value[:30], slots[:30])
    pool.write(1, key[30:], value[30:], slots[30:])
    for written, read in zip((key, value), pool.read(1), strict=True):
        assert torch.equal(read.reshape(48, 2, head_dim)[slots], rounded(written, kept))
    assert not pool.blocks[0].any()


def test_keys_and_queries_are_taken_from_within_a_fused_projection() -> None:
    made = batch((4, 4, 16), torch.float32)
    fused = torch.randn(30, 4, 3, 16, generator=torch.Generator().manual_seed(1))
    query, key, value = fused.unbind(2)
    seen = []
    for one in ((query, key, value), (query.contiguous(), key.contiguous(), value.contiguous())):
        made.pool.blocks.zero_()
        made.pool.write(0, one[1], one[2], torch.arange(16, 46))
        rows = torch.arange(30)
        table = torch.tensor([[1, 2]])
        seen.append(paged_attention(one[0], made.pool, 0, requests=torch.zeros_like(rows), positions=rows, block_tables=table, scale=0.3))
    assert torch.equal(*seen)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copied_blocks_hold_the_same_in_every_layer_and_the_others_stay(dtype: torch.dtype) -> None:
    pool = KVPool.allocate(num_layers=2, num_blocks=6, num_kv_heads=3, head_dim=24, dtype=dtype)
    pool.blocks.copy_(100 * torch.randn(pool.blocks.shape, generator=torch.Generator().manual_seed(1)))
    before = pool.blocks.clone()
    pool.copy_blocks([(5, 0), (1, 4), (1, 2)])
    assert torch.equal(pool.blocks, before[:, [5, 1, 1, 3, 1, 5]])
    pool.copy_blocks([])


def test_what_does_not_exist_is_refused_before_anything_is_done() -> None:
    made = batch((4, 2, 8), torch.float32)
    with pytest.raises(ConfigError, match=r"row 1 \(request 5, position 0\) needs what is not there"):
        _attend_request(made, [0, 5], [0, 0])
    with pytest.raises(ConfigError, match="position 160"):
        _attend_request(made, [0], [160])
    with pytest.raises(ConfigError, match="position 16"):
        _attend_request(made, [2], [16])  # request 2 has one block
    before = made.pool.blocks.clone()
    with pytest.raises(ConfigError, match=r"slots\[1\]=-1 is not one of the pool's \d+ slots"):
        made.pool.write(0, torch.ones(2, 2, 8), torch.ones(2, 2, 8), torch.tensor([0, -1]))
    with pytest.raises(ConfigError, match=r"blocks \(0, 99\) cannot be copied"):
        made.pool.copy_blocks([(0, 1), (0, 99)])
    assert torch.equal(made.pool.blocks.nan_to_num(-7), before.nan_to_num(-7))


def _attend_request(made: Batch, requests: list[int], positions: list[int]) -> Tensor:
    query = torch.zeros(len(requests), 4, 8)
    return paged_attention(
        query, made.pool, 0, requests=torch.tensor(requests), positions=torch.tensor(positions), block_tables=made.tables, scale=1.0
    )


def test_what_does_not_fit_is_refused() -> None:
    made = batch((4, 2, 8), torch.float32)
    where = {"requests": torch.tensor([0]), "positions": torch.tensor([0]), "block_tables": made.tables, "scale": 1.0}
    with pytest.raises(ShapeError, match="query has 3 heads; expected a multiple of the pool's 2"):
        paged_attention(torch.zeros(1, 3, 8), made.pool, 0, **where)
    with pytest.raises(ShapeError, match="the numbers of a head must follow one another"):
        paged_attention(torch.zeros(1, 8, 4).transpose(1, 2), made.pool, 0, **where)
    with pytest.raises(ConfigError, match="float16"):
        paged_attention(torch.zeros(1, 4, 8, dtype=torch.float16), made.pool, 0, **where)
    with pytest.raises(ConfigError, match="window=0"):
        paged_attention(torch.zeros(1, 4, 8), made.pool, 0, **where, window=0)
    with pytest.raises(ConfigError, match="layer=2"):
        paged_attention(torch.zeros(1, 4, 8), made.pool, 2, **where)
    with pytest.raises(ShapeError, match="key has shape"):
        made.pool.write(0, torch.zeros(1, 2, 9), torch.zeros(1, 2, 8), torch.tensor([0]))
    fits = {"block_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "dtype": torch.float32}
    assert why_no_pool(**fits) is None
    assert "block_size=32" in str(why_no_pool(**fits | {"block_size": 32}))
    assert "torch.float16" in str(why_no_pool(**fits | {"dtype": torch.float16}))


@pytest.mark.parametrize("heads", [(12, 32), (3, 8), (2, 80)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_token_of_a_text_sees_all_of_it_and_nothing_else(heads: tuple[int, int], dtype: torch.dtype) -> None:
    num_heads, head_dim = heads
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, sum(LENGTHS), num_heads, head_dim, generator=generator).to(dtype)
    attend = TextAttention(LENGTHS, num_heads=num_heads, head_dim=head_dim, dtype=dtype)
    for layer in range(2):  # the second overwrites the first
        seen = attend(layer, query, key + layer, value * (layer + 1), scale=head_dim**-0.5)
        wide = [tensor.double() for tensor in (query, (key + layer), (value * (layer + 1)))]
        expected = bidirectional_attention(LENGTHS)(layer, *wide, scale=head_dim**-0.5)
        torch.testing.assert_close(seen.double(), expected, atol=2 * TOLERANCE[dtype], rtol=2 * TOLERANCE[dtype])


def test_a_text_has_the_same_bits_alone_and_among_others() -> None:
    query, key, value = torch.randn(3, sum(LENGTHS), 3, 32, generator=torch.Generator().manual_seed(3))
    together = TextAttention(LENGTHS, num_heads=3, head_dim=32, dtype=torch.bfloat16)(0, query, key, value, scale=0.2)
    parts = zip(LENGTHS, *(torch.split(tensor, LENGTHS) for tensor in (query, key, value, together)), strict=True)
    for length, *mine, expected in parts:
        assert torch.equal(TextAttention([length], num_heads=3, head_dim=32, dtype=torch.bfloat16)(0, *mine, scale=0.2), expected)


def test_a_text_has_no_window() -> None:
    query, key, value = torch.randn(3, 4, 2, 16)
    with pytest.raises(ShapeError, match="window=2 was given to bidirectional attention"):
        TextAttention([4], num_heads=2, head_dim=16, dtype=torch.float32)(0, query, key, value, scale=1.0, window=2)
