"""The experts' Triton kernels against the plain layer: outputs and gradients, few rows and many, dropped ones, experts without any."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.kernels.cuda.conftest import DEVICE
from tripod.errors import ShapeError
from tripod.ops import expert_mlp as reference
from tripod.ops.expert_mlp import Gating
from tripod.ops.moe_routing import Capacity, RouterConfig, Routing, choose_experts

pytest.importorskip("triton", reason="the kernels for GPUs need the package triton (pip install triton)")

from tripod.ops.kernels import moe_routing as dispatch
from tripod.ops.kernels.cuda import experts

E, D, F = 5, 20, 18


def parts(num_tokens: int, gating: Gating, hidden: int = D, size: int = F) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(7)
    shapes = ((num_tokens, hidden), (num_tokens, E), (E, (2 if gating == "swiglu" else 3) * size, hidden), (E, hidden, size))
    return [torch.randn(shape, generator=generator, device=DEVICE, requires_grad=True) for shape in shapes]


def routed(logits: Tensor, top_k: int, capacity: Capacity | None = None) -> Routing:
    return choose_experts(logits, RouterConfig(num_experts=E, top_k=top_k), capacity=capacity)


@pytest.mark.parametrize("gating", ["swiglu", "double"])
@pytest.mark.parametrize(
    ("num_tokens", "top_k", "capacity"),
    [(1, 2, None), (3, 1, None), (40, 4, None), (90, 3, None), (90, 2, Capacity(factor=0.7, rule="per-token", minimum=1))],
    ids=["one token", "one choice", "some rows an expert", "several tiles an expert", "with drops"],
)
def test_outputs_and_gradients_are_those_of_the_plain_layer(gating: Gating, num_tokens: int, top_k: int, capacity: Capacity | None) -> None:
    x, logits, up, down = parts(num_tokens, gating)
    found = []
    for run in (reference.expert_mlp, experts.expert_mlp):
        out = run(x, routed(logits, top_k, capacity), up, down, gating)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), (x, logits, up, down))])
    for name, expected, got in zip(("out", "x", "logits", "up", "down"), *found, strict=True):
        assert torch.allclose(got, expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-4), name


@pytest.mark.parametrize("gating", ["swiglu", "double"])
@pytest.mark.parametrize(("num_tokens", "many_rows"), [(4, 128), (60, 128), (60, 1)], ids=["few rows", "some rows", "many rows"])
def test_sizes_that_fill_their_tiles_in_half_precision(
    gating: Gating, num_tokens: int, many_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "MANY_ROWS", many_rows)
    x, logits, up, down = parts(num_tokens, gating, hidden=256, size=256)
    up, down = ((matrix * 0.1).detach().requires_grad_() for matrix in (up, down))
    found = []
    for run, dtype in ((reference.expert_mlp, torch.float32), (experts.expert_mlp, torch.float16)):
        out = run(x.to(dtype), routed(logits, 3), up.to(dtype), down.to(dtype), gating)
        found.append([out.detach(), *torch.autograd.grad(out.float().square().sum() * 1e-3, (x, logits, up, down))])
    for name, expected, got in zip(("out", "x", "logits", "up", "down"), *found, strict=True):
        assert float((got.float() - expected).abs().max()) < 0.02 * float(expected.abs().max()), name


def uneven(counts: list[int], top_k: int, keeps: float) -> Routing:
    """Experts with so many rows, in no order, of which such a part is kept. A token may meet one twice."""
    generator = torch.Generator(DEVICE).manual_seed(11)
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    ids = ids[torch.randperm(len(ids), generator=generator)].view(-1, top_k)
    weights = torch.rand(ids.shape, generator=generator, requires_grad=True)
    is_kept = torch.rand(ids.shape, generator=generator) < keeps if keeps < 1 else None
    return Routing(torch.zeros(len(ids), len(counts)), torch.zeros(len(ids), len(counts)), ids, weights, is_kept)


def check_in_half_precision(routing: Routing, hidden: int, size: int, offset: int = 0) -> None:
    """Outputs and gradients of each row and matrix; matrices lie so many numbers behind where memory begins."""
    generator = torch.Generator(DEVICE).manual_seed(5)

    def matrix(*shape: int) -> Tensor:
        storage = torch.empty(offset + math.prod(shape), dtype=torch.float16)
        return torch.randn(shape, generator=generator, out=storage[offset:].view(shape)).mul_(0.1).requires_grad_()

    x = torch.randn(len(routing.weights), hidden, generator=generator).half().requires_grad_()
    up, down = matrix(routing.num_experts, 2 * size, hidden), matrix(routing.num_experts, hidden, size)
    found = []
    for run, dtype in ((reference.expert_mlp, torch.float32), (experts.expert_mlp, torch.float16)):
        out = run(x.to(dtype), routing, up.to(dtype), down.to(dtype), "swiglu")
        found.append([out.detach(), *torch.autograd.grad(out.float().square().sum() * 1e-2, (x, up, down, routing.weights))])
    for name, expected, got in zip(("out", "x", "up", "down", "weights"), *found, strict=True):
        expected, got = expected.float().flatten(1), got.float().flatten(1)
        error = (got - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-2 * float(expected.norm()))
        assert float(error.max()) < 5e-3, name  # float16 keeps 11 bits


@pytest.mark.parametrize("keeps", [1.0, 0.8], ids=["all rows", "with drops"])
@pytest.mark.parametrize(("hidden", "size"), [(128, 192), (320, 64)], ids=["parts of tiles", "several tiles of columns"])
def test_tall_tiles_end_where_the_rows_of_an_expert_end(hidden: int, size: int, keeps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "TALL_ROWS", 1)
    monkeypatch.setattr(experts, "_up_kernel", None)  # only the tall one may run
    monkeypatch.setattr(experts, "_product_kernel", None)
    check_in_half_precision(uneven([0, 1, 64, 65, 128, 129, 201, 0], 3, keeps), hidden, size)


@pytest.mark.parametrize(("hidden", "offset"), [(72, 0), (128, 1)], ids=["parts of a block", "not aligned"])
def test_matrices_that_the_copy_engine_cannot_read_are_read_by_others(hidden: int, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "TALL_ROWS", 1)
    check_in_half_precision(uneven([3, 70, 50], 3, 1.0), hidden, 64, offset)


def test_matrices_may_lie_in_any_order_and_what_needs_no_gradient_gets_none() -> None:
    x, logits, up, down = parts(40, "swiglu")
    turned = up.detach().transpose(1, 2).contiguous().transpose(1, 2)
    out = experts.expert_mlp(x, routed(logits, 2), turned, down.detach(), "swiglu")
    expected = reference.expert_mlp(x, routed(logits, 2), up, down, "swiglu")
    assert torch.allclose(out, expected, atol=1e-3)
    of_x, of_logits = torch.autograd.grad(out.sum(), (x, logits))
    wanted = torch.autograd.grad(expected.sum(), (x, logits))
    assert torch.allclose(of_x, wanted[0], atol=1e-3)
    assert torch.allclose(of_logits, wanted[1], atol=1e-3)


def test_tokens_choose_by_the_kernel_where_no_gradient_is_wanted_and_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Routing] = []

    def route(*given: Any) -> Routing:
        chosen.append(experts_route(*given))
        return chosen[-1]

    experts_route = experts.route
    monkeypatch.setattr(experts, "route", route)
    monkeypatch.setattr(dispatch, "runs_kernels", lambda device: True)
    _, logits, _, _ = parts(40, "swiglu")
    config = RouterConfig(num_experts=E, top_k=2)
    with torch.no_grad():
        assert dispatch.choose_experts(logits, config) is chosen[0]
        dispatch.choose_experts(logits, config, capacity=Capacity(factor=1.0, rule="per-token"))
        dispatch.choose_experts(logits, RouterConfig(num_experts=E, top_k=2, chooser="expert"))
    dispatch.choose_experts(logits, config)
    assert len(chosen) == 1
    with pytest.raises(ShapeError, match="selection_bias"):
        experts_route(logits.detach(), config, torch.zeros(E + 1))


def test_gradients_of_matrices_may_come_from_torchs_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, like = torch.randn(40, 16), torch.randn(20, 8), torch.empty(E, 16, 8)
    order = experts._sort(torch.randint(0, E, (20, 2)), None, E)
    expected = experts._of_matrices(left, right, like, order, 2, gathered="right")
    if not experts.has_grouped_product(left, like):
        pytest.skip("this build of torch has none")
    monkeypatch.setattr(experts, "MANY_ROWS", 1)
    assert torch.allclose(experts._of_matrices(left, right, like, order, 2, gathered="right"), expected, atol=1e-5)
    turned = experts._of_matrices(right, left, torch.empty(E, 8, 16), order, 2, gathered="left")
    assert torch.allclose(turned, expected.transpose(1, 2), atol=1e-5)


def test_rows_are_sorted_by_expert_and_equals_stay_in_order() -> None:
    ids = torch.randint(0, E, (3000, 3), generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    kept = torch.rand(3000, 3, generator=torch.Generator(DEVICE).manual_seed(2), device=DEVICE) < 0.6
    for is_kept in (None, kept):
        order = experts._sort(ids, is_kept, E)
        wanted = ids.flatten() if is_kept is None else ids.flatten().masked_fill(~is_kept.flatten(), E)
        num_kept = int((wanted < E).sum())
        assert order.places[:num_kept].tolist() == wanted.argsort(stable=True)[:num_kept].tolist()
        assert order.starts.tolist() == [int((wanted < expert).sum()) for expert in range(E + 1)]


def test_experts_without_rows_get_a_gradient_of_zeros_and_no_tokens_at_all_are_fine() -> None:
    x, _, up, down = parts(40, "swiglu")
    logits = torch.full((40, E), -9.0).scatter(1, torch.tensor([1, 3]).expand(40, -1), 9.0)
    of_up, of_down = torch.autograd.grad(experts.expert_mlp(x, routed(logits, 2), up, down, "swiglu").sum(), (up, down))
    for gradient in (of_up, of_down):
        assert gradient.flatten(1).abs().sum(1).gt(0).tolist() == [False, True, False, True, False]
    assert experts.expert_mlp(x[:0], routed(logits[:0], 2), up, down, "swiglu").shape == (0, D)


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_without_gradients_the_same_comes_out(num_tokens: int) -> None:
    x, logits, up, down = parts(num_tokens, "double")
    expected = experts.expert_mlp(x, routed(logits, 2), up, down, "double")
    with torch.no_grad():
        assert torch.equal(experts.expert_mlp(x, routed(logits, 2), up, down, "double"), expected)


@pytest.mark.parametrize(
    "config",
    [
        RouterConfig(num_experts=E, top_k=2),
        RouterConfig(num_experts=E, top_k=3, gate="sigmoid", is_normalized=True, scale=2.5, has_selection_bias=True),
        RouterConfig(num_experts=E, top_k=5, is_normalized=True),
        RouterConfig(num_experts=E, top_k=1, scale=0.5),
    ],
    ids=["softmax", "sigmoid and a bias", "all of them", "one"],
)
def test_tokens_choose_as_they_do_elsewhere(config: RouterConfig) -> None:
    _, logits, _, _ = parts(40, "swiglu")
    logits = logits.detach()
    bias = torch.linspace(-0.5, 0.5, E) if config.has_selection_bias else None
    found, expected = experts.route(logits, config, bias), choose_experts(logits, config, selection_bias=bias)
    assert torch.equal(found.expert_ids, expected.expert_ids)
    for name in ("logits", "gates", "weights"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-6), name
    half = experts.route(logits.to(torch.float16), config, bias)
    assert half.logits.dtype == torch.float32
    assert torch.equal(half.logits, logits.to(torch.float16).float())
    assert len(experts.route(logits[:0], config, bias).weights) == 0


def test_the_first_of_equal_experts_is_chosen() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0]])
    assert experts.route(logits, RouterConfig(num_experts=E, top_k=4)).expert_ids.tolist() == [[1, 2, 4, 0]]


def test_a_row_has_the_same_bits_whatever_its_neighbours_among_as_many() -> None:
    x, logits, up, down = parts(40, "swiglu")
    with torch.no_grad():
        before = experts.expert_mlp(x, routed(logits, 2), up, down, "swiglu")
        order = torch.randperm(40, generator=torch.Generator(DEVICE).manual_seed(3), device=DEVICE)
        assert torch.equal(experts.expert_mlp(x[order], routed(logits[order], 2), up, down, "swiglu"), before[order])
