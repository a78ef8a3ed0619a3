"""Rows through their experts: a loop over tokens, finite differences, and the ways of the fast twin, the reference up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from tripod.errors import ShapeError
from tripod.ops import expert_mlp as reference
from tripod.ops import grouped_linear as module
from tripod.ops.expert_mlp import Gating
from tripod.ops.grouped_linear import grouped_linear, has_grouped_product
from tripod.ops.kernels import expert_mlp as fast
from tripod.ops.kernels.cpu.library import is_available
from tripod.ops.moe_routing import Capacity, RouterConfig, Routing, choose_experts, dispatch
from tripod.ops.onednn_linear import has_onednn_linear


def parts(gating: Gating, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"x": (12, 6), "logits": (12, 7), "up": (7, 10 if gating == "swiglu" else 15, 6), "down": (7, 6, 5)}
    return tuple(torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes.values())  # type: ignore[return-value]


def routed(logits: Tensor, capacity: Capacity | None = None) -> Routing:
    return choose_experts(logits, RouterConfig(num_experts=7, top_k=2), capacity=capacity)


@pytest.mark.parametrize("gating", ["swiglu", "double"])
def test_a_pass_over_experts_is_a_loop_over_tokens(gating: Gating) -> None:
    x, logits, up, down = parts(gating)
    routing = routed(logits)
    expected = torch.zeros(12, 6)
    for token in range(12):
        for expert, weight in zip(routing.expert_ids[token].tolist(), routing.weights[token], strict=True):
            first = up[expert] @ x[token]
            hidden = silu(first[:5]) * first[5:] if gating == "swiglu" else first[:5] * silu(first[5:10]) * first[10:]
            expected[token] += weight * (down[expert] @ hidden)
    assert torch.allclose(reference.expert_mlp(x, routing, up, down, gating), expected, atol=1e-5)


@pytest.mark.parametrize("gating", ["swiglu", "double"])
def test_gradients_are_those_of_finite_differences(gating: Gating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # so that the router runs in float64 as well
    x, logits, up, down = parts(gating, torch.float64)

    def run(x: Tensor, logits: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return reference.expert_mlp(x, routed(logits), up, down, gating)

    assert torch.autograd.gradcheck(run, (x, logits, up, down))


def fast_ways() -> list[fast.Way]:
    return [way for way, is_here in ((fast.FewRows, is_available()), (fast.ManyRows, has_onednn_linear(torch.zeros(1)))) if is_here]


@pytest.fixture(params=fast_ways() or [pytest.param(None, marks=pytest.mark.skip(reason="neither kernels nor oneDNN are here"))])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test once on each way through the experts, however few or many rows there are."""
    monkeypatch.setattr(fast, "_way", lambda x, routing, up: request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("gating", ["swiglu", "double"])
@pytest.mark.parametrize("capacity", [None, Capacity(factor=0.8, rule="per-token", minimum=1)], ids=["dropless", "with drops"])
def test_the_fast_twin_gives_the_same_outputs_and_gradients(gating: Gating, capacity: Capacity | None) -> None:
    x, logits, up, down = parts(gating)
    found = []
    for run in (reference.expert_mlp, fast.expert_mlp):
        out = run(x, routed(logits, capacity), up, down, gating)
        found.append([out, *torch.autograd.grad(out.square().sum(), (x, logits, up, down))])
    for expected, got in zip(*found, strict=True):
        assert torch.allclose(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("gating", ["swiglu", "double"])
def test_the_gradients_of_the_fast_twin_are_those_of_finite_differences_in_float64(gating: Gating) -> None:
    x, logits, up, down = parts(gating)
    ids = routed(logits).expert_ids
    upstream = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))

    def total(run: Any, inputs: list[Tensor]) -> Tensor:  # of x, weights, up, down; the choice is fixed
        x, weights, up, down = inputs
        routing = Routing(logits, logits, ids, weights)
        return (run(x, routing, up, down, gating) * upstream).sum()  # type: ignore[no-any-return]

    inputs = [tensor.detach().requires_grad_() for tensor in (x, routed(logits).weights, up, down)]
    found = torch.autograd.grad(total(fast.expert_mlp, inputs), inputs)
    step = 1e-5
    for place, gradient in enumerate(found):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(place), dtype=torch.float64)
        moved = [[tensor.detach().double() for tensor in inputs] for _ in range(2)]
        moved[0][place] += step * direction
        moved[1][place] -= step * direction
        ahead, behind = (float(total(reference.expert_mlp, one)) for one in moved)
        assert float((gradient.double() * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-3)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("idle", [0, 2, 5], ids=["none idle", "some", "most"])
def test_idle_experts_have_gradients_of_zeros_whatever_their_memory_held(idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = fast.np.full
    monkeypatch.setattr(fast.np, "empty", lambda shape, dtype: empty(shape, float("nan"), dtype))
    x, logits, up, down = parts("swiglu")
    ids = torch.stack([(torch.arange(2) + token) % (7 - idle) for token in range(12)])
    found = []
    for run in (reference.expert_mlp, fast.expert_mlp):
        out = run(x, Routing(logits, logits, ids, logits.gather(1, ids)), up, down, "swiglu")
        found.append(torch.autograd.grad(out.square().sum(), (up, down)))
    for expected, got in zip(*found, strict=True):
        assert not expected[7 - idle :].any()
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_rows_of_an_expert_are_filled_up_to_whole_tiles() -> None:
    """So that oneDNN meets few shapes, and compiles few products, however routing moves."""
    ids = torch.tensor([[0, 2]] * 17 + [[2, 4]] * 16)  # 17, 33 and 16 rows of 0, 2 and 4
    logits = torch.zeros(33, 5)
    sent = dispatch(Routing(logits, logits, ids, torch.ones(33, 2)))
    tiles = fast._tiles(sent)
    assert tiles.experts == ((0, slice(0, 32)), (2, slice(32, 80)), (4, slice(80, 96)))
    assert tiles.tokens[tiles.places].equal(sent.tokens)
    assert tiles.places.tolist() == [*range(17), *range(32, 65), *range(80, 96)]


@pytest.mark.skipif(not is_available(), reason="no CPU kernels to compare with")
@pytest.mark.parametrize("gating", ["swiglu", "double"])
def test_many_rows_are_gated_alike_where_there_are_no_kernels(gating: Gating, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(9, 10 if gating == "swiglu" else 15, generator=generator)
    factors, of_hidden = torch.randn(9, generator=generator), torch.randn(9, 5, generator=generator)
    found = []
    for has_kernels in (True, False):
        monkeypatch.setattr(fast, "is_available", lambda answer=has_kernels: answer)
        hidden = of_hidden.clone()
        found.append([fast._gated(first, factors, gating), *fast._gated_gradients_(hidden, first, factors, gating), hidden])
    for kernel, plain in zip(*found, strict=True):
        torch.testing.assert_close(kernel, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("way")
def test_gradients_may_be_added_to_those_that_are_there() -> None:
    x, logits, up, down = parts("double")
    for _ in range(2):
        fast.expert_mlp(x, routed(logits), up, down, "double", accumulates=True).square().sum().backward()
    expected = torch.autograd.grad(reference.expert_mlp(x, routed(logits), up, down, "double").square().sum(), (x, logits, up, down))
    for tensor, once in zip((x, logits, up, down), expected, strict=True):
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, 2 * once, atol=1e-4, rtol=1e-4)


def test_few_rows_an_expert_and_many_go_different_ways_and_what_is_not_float32_goes_none() -> None:
    up = torch.zeros(8, 4, 3)

    def way(num_rows: int, dtype: torch.dtype = torch.float32) -> fast.Way | None:
        x = torch.zeros(num_rows, 3, dtype=dtype)
        return fast._way(x, choose_experts(torch.zeros(num_rows, 8), RouterConfig(num_experts=8, top_k=2)), up.to(dtype))

    assert way(1) is (fast.FewRows if is_available() else None)
    assert way(4000) is (fast.ManyRows if has_onednn_linear(up) else None)
    assert way(1, torch.bfloat16) is way(4000, torch.float64) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert way(1) is way(4000) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_grouped_product_is_the_loop_over_experts_with_its_gradients(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((9, 16), (4, 24, 16)))
    counts = torch.tensor([5, 0, 3, 1])
    if not has_grouped_product(x, weight):
        pytest.skip("this build of torch has none")
    found = []
    for product in (module._grouped_mm, None):
        monkeypatch.setattr(module, "_grouped_mm", product)
        out = grouped_linear(x, weight, counts)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), (x, weight))])
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, atol=1e-4 if dtype is torch.float32 else 0.5)  # of numbers up to 60, in 8 bits


@pytest.mark.usefixtures("way")
def test_experts_without_rows_get_no_gradient_and_no_rows_at_all_are_fine() -> None:
    x, _, up, down = parts("swiglu")
    one = torch.full((12, 7), -9.0).scatter(1, torch.tensor([2, 5]).expand(12, -1), 9.0)  # everyone goes to 2 and 5
    for run in (reference.expert_mlp, fast.expert_mlp):
        gradient = torch.autograd.grad(run(x, routed(one), up, down, "swiglu").sum(), up)[0]
        assert gradient.flatten(1).abs().sum(1).gt(0).tolist() == [False, False, True, False, False, True, False]
        assert run(x[:0], routed(one[:0]), up, down, "swiglu").shape == (0, 6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"x has shape \[3, 4\]; expected \[\*, 5\]"):
        grouped_linear(torch.zeros(3, 4), torch.zeros(2, 6, 5), torch.tensor([1, 2]))
