"""One call a layer: the same bits as the kernels one by one, and the same numbers as the layer written in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.cpu.levels import level, needs_kernels
from tripod.errors import ConfigError, ShapeError
from tripod.ops.kernels.cpu.experts import ExpertTable, PackedExpert, route, score
from tripod.ops.kernels.cpu.fused_layer import Dense, FusedLayer, FusedLayers, Norm, Routed, StepRows
from tripod.ops.kernels.cpu.linear import gate_up, gate_up_bias, linear, pack_gate_up, pack_linear
from tripod.ops.kernels.cpu.paged_attention import KVPool, paged_attention
from tripod.ops.kernels.cpu.rows import layer_norm, rms_norm, rotate
from tripod.ops.kernels.cpu.threads import set_num_threads
from tripod.ops.linear_formats import LinearActivation
from tripod.ops.moe_routing import RouterConfig

__all__ = ["level"]
pytestmark = needs_kernels

SIZE, INTERMEDIATE, HEAD_DIM = 96, 160, 24
each_format = pytest.mark.parametrize(("format", "group"), [("f32", None), ("bf16", None), ("int8", None), ("int4", 32)])


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layer in plain tensors, from which the fused one, the kernels one by one and the float64 definition are all made."""

    num_heads: int = 4
    num_kv_heads: int = 4
    is_neox: bool = True
    is_parallel: bool = True
    has_head_norms: bool = False
    activation: LinearActivation | None = "gelu_erf"
    window: int | None = None

    @property
    def rows(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * HEAD_DIM

    def weight(self, name: str) -> Tensor:
        seen = self.num_heads * HEAD_DIM
        shapes = {"qkv": (self.rows, SIZE), "output": (SIZE, seen), "up": (INTERMEDIATE, SIZE), "gate": (INTERMEDIATE, SIZE)}
        shape = shapes.get(name, (SIZE, INTERMEDIATE))
        return _random(*shape, seed=sum(map(ord, name))) / shape[1] ** 0.5

    def bias(self, name: str) -> Tensor:
        return _random(self.weight(name).shape[0], seed=sum(map(ord, name)) + 1) / 4

    def norm(self, name: str, size: int = SIZE) -> Norm:
        weight = 1 + _random(size, seed=len(name)) / 4
        is_rms = not self.is_neox
        return Norm(weight, None if is_rms else _random(size, seed=9) / 4, 1e-5, is_rms)

    def fused(self, format: str, group: int | None) -> FusedLayer:
        def dense(name: str) -> Dense:
            return Dense(pack_linear(self.weight(name), format, group), self.bias(name))

        up = dense("up")
        if self.activation is None:
            up = Dense(
                pack_gate_up(self.weight("gate"), self.weight("up"), format, group), gate_up_bias(self.bias("gate"), self.bias("up"))
            )
        head_norms = [self.norm(name, HEAD_DIM) if self.has_head_norms else None for name in ("query", "key")]
        return FusedLayer(
            attention_norm=self.norm("attention"),
            query_key_value=dense("qkv"),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=HEAD_DIM,
            output=dense("output"),
            mlp_norm=self.norm("mlp"),
            up=up,
            down=dense("down"),
            activation=self.activation,
            is_interleaved=self.is_neox,
            is_parallel=self.is_parallel,
            window=self.window,
            query_norm=head_norms[0],
            key_norm=head_norms[1],
        )


NEOX = Plan()
GPT2_ORDER = Plan(is_parallel=False, activation="gelu_tanh")
QWEN2 = Plan(is_neox=False, is_parallel=False, num_kv_heads=2, activation=None)
QWEN3 = replace(QWEN2, has_head_norms=True, num_kv_heads=1, window=7)
each_plan = pytest.mark.parametrize("plan", [NEOX, GPT2_ORDER, QWEN2, QWEN3], ids=["neox", "gpt2-order", "qwen2", "qwen3"])


@dataclass(frozen=True)
class Batch:
    """Three requests: a decode, a chunk of a prompt that began before, and a new prompt."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    requests: Tensor
    positions: Tensor
    tables: Tensor

    @classmethod
    def mixed(cls, spans: tuple[tuple[int, int], ...] = ((20, 21), (5, 40), (0, 18))) -> Batch:
        tables = torch.tensor([[3, 7, 1], [0, 2, 8], [5, 4, 6]])
        positions = torch.cat([torch.arange(*span) for span in spans])
        requests = torch.cat([torch.full((end - start,), index) for index, (start, end) in enumerate(spans)])
        slots = tables[requests, positions // 16] * 16 + positions % 16
        angles = torch.arange(64)[:, None] * torch.tensor([1.0, 0.1, 0.01])
        x = _random(len(positions), SIZE, seed=5)
        return cls(x, angles.cos(), angles.sin(), slots, requests, positions, tables)

    def step(self, pool: KVPool, kept: list[int] | None = None) -> StepRows:
        return StepRows(self.cos, self.sin, self.slots, self.requests, self.positions, self.tables, pool, kept)

    def rows(self, keep: Tensor) -> Batch:
        slots, requests, positions = (part[keep] for part in (self.slots, self.requests, self.positions))
        return replace(self, x=self.x[keep], slots=slots, requests=requests, positions=positions)


def _pool(plan: Plan, dtype: torch.dtype) -> KVPool:
    pool = KVPool.allocate(num_layers=2, num_blocks=9, num_kv_heads=plan.num_kv_heads, head_dim=HEAD_DIM, dtype=dtype)
    history = _random(9 * 16, plan.num_kv_heads, HEAD_DIM, seed=6)
    pool.write(1, history, history.flip(0).contiguous(), torch.arange(9 * 16))
    return pool


def _normed(norm: Norm, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.eps) if norm.is_rms else layer_norm(x, norm.weight, norm.bias, norm.eps)


def _heads(plan: Plan, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if plan.is_neox:
        query, key, value = rows.view(len(rows), plan.num_heads, 3, HEAD_DIM).unbind(2)
        return query, key, value
    split = rows.view(len(rows), -1, HEAD_DIM).split([plan.num_heads, plan.num_kv_heads, plan.num_kv_heads], dim=1)
    return split[0], split[1], split[2]


def _one_by_one(plan: Plan, batch: Batch, pool: KVPool, format: str, group: int | None) -> Tensor:
    def dense(name: str, x: Tensor, activation: LinearActivation | None = None, residual: Tensor | None = None) -> Tensor:
        return linear(x, pack_linear(plan.weight(name), format, group), plan.bias(name), activation, residual)

    def up(x: Tensor) -> Tensor:
        if plan.activation is not None:
            return dense("up", x, plan.activation)
        packed = pack_gate_up(plan.weight("gate"), plan.weight("up"), format, group)
        return gate_up(x, packed, gate_up_bias(plan.bias("gate"), plan.bias("up")))

    query, key, value = _heads(plan, dense("qkv", _normed(plan.norm("attention"), batch.x)))
    if plan.has_head_norms:
        query, key = (_normed(plan.norm(name, HEAD_DIM), heads.contiguous()) for name, heads in (("query", query), ("key", key)))
    query, key = (rotate(heads, batch.cos[batch.positions, None], batch.sin[batch.positions, None]) for heads in (query, key))
    pool.write(1, key, value, batch.slots)
    seen = paged_attention(
        query,
        pool,
        1,
        requests=batch.requests,
        positions=batch.positions,
        block_tables=batch.tables,
        scale=HEAD_DIM**-0.5,
        window=plan.window,
    )
    attended = dense("output", seen.flatten(1), residual=batch.x)
    return dense("down", up(_normed(plan.norm("mlp"), batch.x if plan.is_parallel else attended)), residual=attended)


def _in_float64(plan: Plan, batch: Batch, pool: KVPool) -> Tensor:
    def dense(name: str, x: Tensor) -> Tensor:
        return x @ plan.weight(name).double().T + plan.bias(name).double()

    def normed(norm: Norm, x: Tensor) -> Tensor:
        if norm.is_rms:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight.double()
        assert norm.bias is not None
        return torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)

    def turned(heads: Tensor) -> Tensor:
        half = batch.cos.shape[-1]
        first, second, rest = heads.split([half, half, HEAD_DIM - 2 * half], dim=-1)
        cos, sin = (angles[batch.positions, None].double() for angles in (batch.cos, batch.sin))
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    x = batch.x.double()
    query, key, value = _heads(plan, dense("qkv", normed(plan.norm("attention"), x)))
    if plan.has_head_norms:
        query, key = normed(plan.norm("query", HEAD_DIM), query), normed(plan.norm("key", HEAD_DIM), key)
    query, key = turned(query), turned(key)
    keys, values = (part.double().flatten(0, 1) for part in pool.read(1))
    keys[batch.slots], values[batch.slots] = key, value
    seen = torch.empty_like(query)
    group = plan.num_heads // plan.num_kv_heads
    for row in range(len(x)):
        position = int(batch.positions[row])
        tokens = torch.arange(0 if plan.window is None else max(0, position + 1 - plan.window), position + 1)
        slots = batch.tables[batch.requests[row], tokens // 16] * 16 + tokens % 16
        for head in range(plan.num_heads):
            scores = keys[slots, head // group] @ query[row, head] / HEAD_DIM**0.5
            seen[row, head] = scores.softmax(0) @ values[slots, head // group]
    attended = x + dense("output", seen.flatten(1))
    hidden = normed(plan.norm("mlp"), x if plan.is_parallel else attended)
    match plan.activation:
        case None:
            activated = torch.nn.functional.silu(dense("gate", hidden)) * dense("up", hidden)
        case _:
            activated = torch.nn.functional.gelu(dense("up", hidden), approximate="tanh" if plan.activation == "gelu_tanh" else "none")
    return attended + dense("down", activated)


def _kv_dtype(format: str) -> torch.dtype:
    return {"f32": torch.float32, "int8": torch.int8}.get(format, torch.bfloat16)


@each_plan
@each_format
def test_a_fused_layer_has_the_bits_of_the_kernels_one_by_one(level: str, plan: Plan, format: str, group: int | None) -> None:
    batch = Batch.mixed()
    pools = [_pool(plan, _kv_dtype(format)) for _ in range(2)]
    x = batch.x.clone()
    for num_threads in (1, 2, 3):
        set_num_threads(num_threads)
        x.copy_(batch.x)
        plan.fused(format, group)(x, pools[0], 1, batch.step(pools[0]))
        expected = _one_by_one(plan, batch, pools[1], format, group)
        assert torch.equal(x, expected)
        assert torch.equal(pools[0].blocks, pools[1].blocks)


@each_plan
@pytest.mark.parametrize(
    ("format", "group", "error"), [("f32", None, 2e-6), ("bf16", None, 1.5e-2), ("int8", None, 3e-2), ("int4", 32, 0.2)]
)
def test_a_fused_layer_is_the_layer_that_the_paper_writes(level: str, plan: Plan, format: str, group: int | None, error: float) -> None:
    batch = Batch.mixed()
    pool = _pool(plan, _kv_dtype(format))
    expected = _in_float64(plan, batch, pool) - batch.x.double()
    x = batch.x.clone()
    plan.fused(format, group)(x, pool, 1, batch.step(pool))
    added = x.double() - batch.x.double()
    assert ((added - expected).abs().max() / expected.abs().max()).item() < error  # what the formats' bits allow


@each_plan
@each_format
def test_a_row_has_the_same_bits_whatever_else_is_in_the_step(plan: Plan, format: str, group: int | None) -> None:
    set_num_threads(2)
    batch, layer = Batch.mixed(), plan.fused(format, group)
    pool = _pool(plan, _kv_dtype(format))
    together = batch.x.clone()
    layer(together, pool, 1, batch.step(pool))
    for rows in (torch.arange(0, 1), torch.arange(1, 36), torch.arange(36, 54)):  # one request at a time
        alone = batch.rows(rows)
        pool = _pool(plan, _kv_dtype(format))
        layer(alone.x, pool, 1, alone.step(pool))
        assert torch.equal(alone.x, together[rows])
    for rows in (torch.arange(1, 20), torch.arange(20, 36)):  # the chunk in two chunks
        part = batch.rows(rows)
        pool = pool if rows[0] == 20 else _pool(plan, _kv_dtype(format))
        layer(part.x, pool, 1, part.step(pool))
        assert torch.equal(part.x, together[rows])


@each_plan
@each_format
@pytest.mark.parametrize("kept", [[0, 35, 53], [53], [5, 6, 9, 36]], ids=["ends", "one", "some"])
def test_a_last_layer_keeps_rows_with_the_bits_that_they_have_among_all(
    level: str, plan: Plan, format: str, group: int | None, kept: list[int]
) -> None:
    batch, layer = Batch.mixed(), plan.fused(format, group)
    pools = [_pool(plan, _kv_dtype(format)) for _ in range(2)]
    for num_threads in (1, 3):
        set_num_threads(num_threads)
        every, some = batch.x.clone(), batch.x.clone()
        layer(every, pools[0], 1, batch.step(pools[0]))
        layer(some, pools[1], 1, batch.step(pools[1], kept), is_last=True)
        assert torch.equal(some[: len(kept)], every[kept])
        assert torch.equal(pools[0].blocks, pools[1].blocks)  # keys and values of all rows are written


NUM_EXPERTS, EXPERT_SIZE = 7, 50


def _sparse(format: str, group: int | None) -> tuple[FusedLayer, FusedLayer, Routed]:
    """A layer with experts, one that ends before them, and those."""

    def dense(*shape: int, seed: int) -> Dense:
        return Dense(pack_linear(_random(*shape, seed=seed) / shape[1] ** 0.5, format, group))

    experts = [
        PackedExpert(
            pack_gate_up(*(_random(EXPERT_SIZE, SIZE, seed=20 + 3 * number + side) / 10 for side in (0, 1)), format, group),
            dense(SIZE, EXPERT_SIZE, seed=22 + 3 * number).weight,
        )
        for number in range(NUM_EXPERTS)
    ]
    config = RouterConfig(num_experts=NUM_EXPERTS, top_k=3, is_normalized=True)
    routed = Routed(_random(NUM_EXPERTS, SIZE, seed=50), config, ExpertTable(experts), _random(NUM_EXPERTS, seed=51) / 10)
    shared = {
        "attention_norm": QWEN2.norm("attention"),
        "query_key_value": dense(QWEN2.rows, SIZE, seed=18),
        "output": dense(SIZE, QWEN2.num_heads * HEAD_DIM, seed=19),
        "num_heads": QWEN2.num_heads,
        "num_kv_heads": QWEN2.num_kv_heads,
        "head_dim": HEAD_DIM,
    }
    return FusedLayer(**shared, mlp_norm=QWEN2.norm("mlp"), routed=routed), FusedLayer(**shared), routed


@each_format
@pytest.mark.parametrize("kept", [None, [0, 35, 53]], ids=["all", "some"])
def test_a_layer_with_experts_has_the_bits_of_the_kernels_one_by_one(
    level: str, format: str, group: int | None, kept: list[int] | None
) -> None:
    batch = Batch.mixed()
    pools = [_pool(QWEN2, _kv_dtype(format)) for _ in range(2)]
    whole, attention, routed = _sparse(format, group)
    rows = slice(None) if kept is None else slice(len(kept))
    expected = batch.x.clone()
    attention(expected, pools[1], 1, batch.step(pools[1], kept), is_last=kept is not None)
    normed = _normed(QWEN2.norm("mlp"), expected[rows])
    assert routed.selection_bias is not None
    routing = route(score(normed, routed.router), routed.config, routed.selection_bias)
    assert len(routing.expert_ids.unique()) == NUM_EXPERTS or kept is not None, "rows go to all experts"
    routed.experts.add(normed, routing, expected[rows])
    for num_threads in (1, 2, 3):
        set_num_threads(num_threads)
        x = batch.x.clone()
        whole(x, pools[0], 1, batch.step(pools[0], kept), is_last=kept is not None)
        assert torch.equal(x[rows], expected[rows]), num_threads
        assert torch.equal(pools[0].blocks, pools[1].blocks)


@each_format
@pytest.mark.parametrize("kept", [None, [0, 35, 53]], ids=["all", "some"])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_layers_in_one_call_have_the_bits_of_one_after_the_other(
    level: str, format: str, group: int | None, kept: list[int] | None, num_threads: int
) -> None:
    batch = Batch.mixed()
    sparse, _, _ = _sparse(format, group)
    layers = [QWEN2.fused(format, group), sparse]
    pools = [_pool(QWEN2, _kv_dtype(format)) for _ in range(2)]
    x, expected = batch.x.clone(), batch.x.clone()
    for index, layer in enumerate(layers):
        layer(expected, pools[1], index, batch.step(pools[1], kept), is_last=index == 1)
    set_num_threads(num_threads)
    FusedLayers(layers)(x, pools[0], batch.step(pools[0], kept))
    rows = slice(None) if kept is None else slice(len(kept))
    assert torch.equal(x[rows], expected[rows])
    assert torch.equal(pools[0].blocks, pools[1].blocks)
    for norm in (QWEN2.norm("last"), NEOX.norm("last")):
        x = batch.x.clone()
        FusedLayers(layers, norm=norm)(x, pools[0], batch.step(pools[0], kept))
        assert torch.equal(x[rows], _normed(norm, expected[rows].contiguous()))


def test_layers_that_do_not_fit_each_other_or_the_step_are_refused() -> None:
    batch, pool = Batch.mixed(), _pool(QWEN2, torch.float32)
    layer = QWEN2.fused("f32", None)
    with pytest.raises(ConfigError, match="the pool has 2 layers; expected at least 3"):
        FusedLayers([layer] * 3)(batch.x, pool, batch.step(pool))
    with pytest.raises(ShapeError, match="x has shape"):
        FusedLayers([layer])(batch.x[:3], pool, batch.step(pool))
    for part in ({"weight": torch.ones(SIZE + 1)}, {"bias": torch.ones(SIZE - 1)}):
        with pytest.raises(ShapeError, match=f"norm.{next(iter(part))} has shape"):
            FusedLayers([layer], norm=replace(NEOX.norm("last"), **part))
    for unlike in ([NEOX.fused("f32", None), layer], []):
        with pytest.raises(ShapeError, match="expected one for all, and a layer at least"):
            FusedLayers(unlike)


def test_experts_that_do_not_fit_a_layer_are_refused() -> None:
    _, _, routed = _sparse("f32", None)
    parts = {
        "attention_norm": QWEN2.norm("attention"),
        "query_key_value": Dense(pack_linear(_random(QWEN2.rows, SIZE), "f32")),
        "output": Dense(pack_linear(_random(SIZE, QWEN2.num_heads * HEAD_DIM), "f32")),
        "num_heads": QWEN2.num_heads,
        "num_kv_heads": QWEN2.num_kv_heads,
        "head_dim": HEAD_DIM,
    }
    norm = QWEN2.norm("mlp")
    up = Dense(pack_gate_up(_random(INTERMEDIATE, SIZE), _random(INTERMEDIATE, SIZE), "f32"))
    for half in ({"routed": routed}, {"mlp_norm": norm}, {"mlp_norm": norm, "up": up}, {"mlp_norm": norm, "up": up, "routed": routed}):
        with pytest.raises(ConfigError, match="give one of the two, or none"):
            FusedLayer(**parts, **half)
    with pytest.raises(ConfigError, match="router for 7 experts and 7 of them, is_parallel=True"):
        FusedLayer(**parts, mlp_norm=norm, routed=routed, is_parallel=True)
    with pytest.raises(ConfigError, match="router for 8 experts and 7 of them"):
        FusedLayer(**parts, mlp_norm=norm, routed=replace(routed, config=RouterConfig(num_experts=8, top_k=3)))
    with pytest.raises(ConfigError, match="activation='silu'; expected"):
        FusedLayer(**parts, mlp_norm=norm, routed=routed, activation="silu")
    with pytest.raises(ShapeError, match="router has shape"):
        FusedLayer(**parts, mlp_norm=norm, routed=replace(routed, router=_random(NUM_EXPERTS, SIZE + 1)))
    narrow = ExpertTable([PackedExpert(pack_gate_up(_random(9, 8), _random(9, 8), "f32"), pack_linear(_random(8, 9), "f32"))] * NUM_EXPERTS)
    with pytest.raises(ShapeError, match="the experts read rows of 8; expected 96"):
        FusedLayer(**parts, mlp_norm=norm, routed=replace(routed, experts=narrow))


def test_what_does_not_fit_is_refused_before_the_kernel() -> None:
    plan, batch = NEOX, Batch.mixed()
    pool = _pool(plan, torch.float32)
    layer = plan.fused("f32", None)
    with pytest.raises(ShapeError, match=r"x has shape \[3, 96\]"):
        layer(batch.x[:3], pool, 1, batch.step(pool))
    with pytest.raises(ConfigError, match="index=2"):
        layer(batch.x, pool, 2, batch.step(pool))
    with pytest.raises(ConfigError, match=r"row 1 .* needs what is not there"):
        replace(batch, slots=batch.slots.index_fill(0, torch.tensor([1]), 9 * 16)).step(pool)
    with pytest.raises(ConfigError, match=r"row 35 .*, and angles of 39 positions"):
        replace(batch, cos=batch.cos[:39], sin=batch.sin[:39]).step(pool)
    for kept in ([3, 3], [-1, 2], [54]):
        with pytest.raises(ConfigError, match="ascending order, each at least 0 and below 54"):
            batch.step(pool, kept)
    with pytest.raises(ConfigError, match=r"row 0 .* needs what is not there"):
        replace(batch, positions=batch.positions.index_fill(0, torch.tensor([0]), 48)).step(pool)
    with pytest.raises(ShapeError, match="down has a weight"):
        FusedLayer(
            attention_norm=plan.norm("attention"),
            query_key_value=Dense(pack_linear(plan.weight("qkv"), "f32")),
            num_heads=4,
            num_kv_heads=4,
            head_dim=HEAD_DIM,
            output=Dense(pack_linear(plan.weight("output"), "f32")),
            mlp_norm=plan.norm("mlp"),
            up=Dense(pack_linear(plan.weight("up"), "f32")),
            down=Dense(pack_linear(plan.weight("output"), "f32")),
            activation="silu",
            is_interleaved=True,
        )
