"""Laws of routing: worked out by hand, printed in the papers, or true for any input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tripod.errors import ConfigError, ShapeError
from tripod.ops.moe_routing import (
    Capacity,
    RouterConfig,
    Routing,
    balance_loss,
    balanced_bias,
    choose_experts,
    combine,
    dispatch,
    jitter,
    within_capacity,
    z_loss,
)

INFINITE = Capacity(factor=math.inf, rule="per-token")


def logits_of(num_tokens: int, num_experts: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))


def even_routing(num_tokens: int, num_experts: int, top_k: int) -> Routing:
    """Each expert is chosen equally often, and all gates are equal."""
    expert_ids = (torch.arange(num_tokens)[:, None] * top_k + torch.arange(top_k)) % num_experts
    logits = torch.zeros(num_tokens, num_experts)
    return Routing(logits, logits.softmax(-1), expert_ids, torch.full((num_tokens, top_k), 1 / num_experts))


def test_a_token_goes_to_its_best_experts_with_the_gates_as_they_are_or_summing_to_one() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))  # so that the softmax gives these numbers
    raw = choose_experts(logits, RouterConfig(num_experts=4, top_k=2))
    assert raw.expert_ids.tolist() == [[1, 3]]
    assert raw.weights.tolist()[0] == pytest.approx([0.4, 0.3])
    normal = choose_experts(logits, RouterConfig(num_experts=4, top_k=2, is_normalized=True, scale=2.5))
    assert normal.weights.tolist()[0] == pytest.approx([2.5 * 4 / 7, 2.5 * 3 / 7])


def test_sigmoid_gates_are_independent_and_a_bias_changes_the_choice_but_not_the_weight() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    config = RouterConfig(num_experts=3, top_k=1, gate="sigmoid", has_selection_bias=True)
    chosen = choose_experts(logits, config, selection_bias=torch.tensor([0.0, 0.0, 0.7]))  # 0.5, 0.88, 0.27 + 0.7
    assert chosen.expert_ids.tolist() == [[2]]
    assert chosen.weights.item() == pytest.approx(1 / (1 + math.e))


def test_logits_of_any_precision_are_routed_in_float32() -> None:
    logits = logits_of(20, 8).bfloat16()
    found, expected = (choose_experts(one, RouterConfig(num_experts=8, top_k=2)) for one in (logits, logits.float()))
    assert found.gates.dtype == found.weights.dtype == torch.float32
    assert torch.equal(found.weights, expected.weights)


@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("group_tokens", [None, 32])
def test_a_perfectly_even_load_has_loss_k_a_token_and_1_an_assignment(top_k: int, group_tokens: int | None) -> None:
    routing = even_routing(64, 16, top_k)
    assert balance_loss(routing, group_tokens=group_tokens).item() == pytest.approx(top_k)
    assert balance_loss(routing, per="assignment", group_tokens=group_tokens).item() == pytest.approx(1.0)


def test_sigmoid_gates_are_divided_by_their_sum_before_their_balance_is_taken() -> None:
    halves = replace(even_routing(64, 16, 2), gates=torch.full((64, 16), 0.5))
    assert balance_loss(halves).item() == pytest.approx(2.0)


def test_the_balance_loss_is_flaxformers_number_and_the_worst_case_is_the_number_of_experts() -> None:
    routing = choose_experts(logits_of(40, 8), RouterConfig(num_experts=8, top_k=2))
    chosen = torch.zeros(40, 8).scatter(1, routing.expert_ids, 1.0)
    flaxformer = (chosen.mean(0) * routing.gates.mean(0)).mean() * 8**2  # E^2 times the mean over experts
    assert balance_loss(routing).item() == pytest.approx(flaxformer.item())
    collapsed = torch.full((10, 8), -40.0)
    collapsed[:, 3] = 40.0
    assert balance_loss(choose_experts(collapsed, RouterConfig(num_experts=8, top_k=1))).item() == pytest.approx(8.0)


def test_the_balance_loss_is_that_of_transformers() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = logits_of(50, 8)
    routing = choose_experts(logits, RouterConfig(num_experts=8, top_k=2))
    assert balance_loss(routing).item() == pytest.approx(float(load_balancing_loss_func((logits,), 8, 2)))


def test_the_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(1.0), math.log(2.0), math.log(3.0), math.log(4.0)]])
    assert z_loss(logits).item() == pytest.approx((math.log(4) ** 2 + math.log(10) ** 2) / 2)


@pytest.mark.parametrize(
    ("rule", "num_tokens", "slots"),
    [
        ("per-token", 4096, 320),  # round(1.25 * 4096 / 16)
        ("per-token", 20, 4),  # round(1.56) is below the minimum
        ("per-assignment", 4096, 640),
        ("per-assignment", 60, 10),  # floor(1.25 * 2 * 60 / 16) = 9, up to even
        ("per-assignment", 3, 3),  # the minimum is 4, and there are 3
    ],
)
def test_the_two_published_capacities(rule: str, num_tokens: int, slots: int) -> None:
    capacity = Capacity(factor=1.25, rule=rule)  # type: ignore[arg-type]
    assert capacity.slots(num_tokens, num_experts=16, top_k=2) == slots


def test_flaxformers_rule_drops_at_least_three_eighths_of_top_2_at_factor_1_25() -> None:
    capacity = Capacity(factor=1.25, rule="per-token")
    even = within_capacity(even_routing(4096, 16, 2).expert_ids, 16, capacity)
    assert 1 - even.float().mean().item() == pytest.approx(0.375)
    assert within_capacity(even_routing(4096, 16, 2).expert_ids, 16, Capacity(factor=1.25, rule="per-assignment")).all()
    for skew, least in ((0.0, 0.375), (3.0, 0.5)):
        logits = logits_of(4096, 16) + torch.linspace(0, skew, 16)
        chosen = choose_experts(logits, RouterConfig(num_experts=16, top_k=2)).expert_ids
        assert 1 - within_capacity(chosen, 16, capacity).float().mean().item() >= least


def test_all_first_choices_come_before_any_second_one_and_earlier_tokens_before_later() -> None:
    expert_ids = torch.tensor([[1, 0], [2, 0], [0, 1], [0, 2], [0, 1]])
    kept = within_capacity(expert_ids, 3, Capacity(factor=1.2, rule="per-token", minimum=1))  # round(1.2 * 5 / 3) = 2 slots each
    # Expert 0 is the first choice of tokens 2, 3 and 4, the second of 0 and 1: it takes 2 and 3. Expert 1 takes 0, then 2.
    assert kept.tolist() == [[True, False], [True, False], [True, True], [True, True], [False, False]]


def test_groups_of_tokens_compete_among_themselves() -> None:
    expert_ids = torch.tensor([[0], [0], [0], [0]])
    capacity = Capacity(factor=1.0, rule="per-token", minimum=1, group_tokens=2)  # one slot of each expert a group
    assert within_capacity(expert_ids, 2, capacity).flatten().tolist() == [True, False, True, False]


def through_experts(x: Tensor, routing: Routing, matrices: Tensor) -> Tensor:
    sent = dispatch(routing)
    experts = torch.repeat_interleave(torch.arange(len(matrices)), sent.counts)
    return combine(torch.einsum("ad,aed->ae", x[sent.tokens], matrices[experts]), routing, sent)


def test_no_drops_are_an_infinite_capacity() -> None:
    config, x, matrices = RouterConfig(num_experts=6, top_k=2), logits_of(30, 5, 1), torch.randn(6, 5, 5)
    free = choose_experts(logits_of(30, 6), config)
    roomy = choose_experts(logits_of(30, 6), config, capacity=INFINITE)
    assert roomy.is_kept is not None
    assert roomy.is_kept.all()
    assert torch.allclose(through_experts(x, free, matrices), through_experts(x, roomy, matrices), atol=1e-6)


@pytest.mark.parametrize("chooser", ["token", "expert"])
def test_a_permutation_of_the_tokens_permutes_what_comes_out(chooser: str) -> None:
    config = RouterConfig(num_experts=6, top_k=2, chooser=chooser)  # type: ignore[arg-type]
    x, logits, matrices = logits_of(30, 5, 1), logits_of(30, 6), torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    plain = through_experts(x, choose_experts(logits, config), matrices)
    permuted = through_experts(x[order], choose_experts(logits[order], config), matrices)
    assert torch.allclose(permuted, plain[order], atol=1e-6)


def test_a_sorted_pass_is_a_loop_over_tokens() -> None:
    x, matrices = logits_of(20, 5, 1), torch.randn(6, 5, 5)
    routing = choose_experts(logits_of(20, 6), RouterConfig(num_experts=6, top_k=3), capacity=Capacity(factor=0.9, rule="per-token"))
    assert routing.is_kept is not None
    assert not routing.is_kept.all()
    expected = torch.zeros(20, 5)
    for token in range(20):
        for choice in range(3):
            if routing.is_kept[token, choice]:
                expected[token] += routing.weights[token, choice] * (matrices[routing.expert_ids[token, choice]] @ x[token])
    assert torch.allclose(through_experts(x, routing, matrices), expected, atol=1e-5)
    assert routing.load().tolist() == dispatch(routing).counts.tolist()
    assert routing.load().sum() == routing.is_kept.sum()


def test_experts_that_choose_are_evenly_loaded_and_take_their_best_tokens() -> None:
    logits = logits_of(32, 8)
    routing = choose_experts(logits, RouterConfig(num_experts=8, top_k=2, chooser="expert"))
    assert routing.load().tolist() == [8] * 8  # 32 tokens, two experts each on average
    assert routing.is_kept is not None
    for expert in range(8):
        best = set(logits.softmax(-1)[:, expert].topk(8).indices.tolist())
        assert set(routing.is_kept[:, expert].nonzero().flatten().tolist()) == best


def test_jitter_is_within_its_bounds_and_is_its_generators() -> None:
    noisy = jitter(torch.ones(1000), 0.01, torch.Generator().manual_seed(1))
    assert torch.equal(noisy, jitter(torch.ones(1000), 0.01, torch.Generator().manual_seed(1)))
    assert 0.99 <= noisy.min() < 0.991
    assert 1.009 < noisy.max() <= 1.01


def test_the_selection_bias_moves_a_skewed_load_to_an_even_one() -> None:
    config = RouterConfig(num_experts=8, top_k=2, gate="sigmoid", has_selection_bias=True)
    logits = logits_of(400, 8) + torch.linspace(0, 3, 8)
    bias = torch.zeros(8)
    before = choose_experts(logits, config, selection_bias=bias).load()
    for _ in range(800):
        bias = balanced_bias(bias, choose_experts(logits, config, selection_bias=bias).load(), rate=0.001)
    after = choose_experts(logits, config, selection_bias=bias).load()
    assert before.max() > 200
    assert after.max() < 115  # the mean is 100
    assert torch.equal(balanced_bias(torch.zeros(3), torch.tensor([1, 2, 3]), 0.5), torch.tensor([0.5, 0.0, -0.5]))


@pytest.mark.parametrize(
    "config",
    [
        RouterConfig(num_experts=5, top_k=2),
        RouterConfig(num_experts=5, top_k=2, is_normalized=True),
        RouterConfig(num_experts=5, top_k=3, gate="sigmoid", is_normalized=True, scale=1.7),
        RouterConfig(num_experts=5, top_k=2, chooser="expert"),
    ],
    ids=["raw", "normalised", "sigmoid", "expert choice"],
)
def test_gradients_are_those_of_finite_differences(config: RouterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # so that the whole definition runs in float64
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def total(logits: Tensor, x: Tensor, matrices: Tensor) -> Tensor:
        routing = choose_experts(logits, config)
        losses = balance_loss(routing) + 0.3 * balance_loss(routing, per="assignment", group_tokens=4) + z_loss(logits)
        return through_experts(x, routing, matrices).square().sum() + losses

    assert torch.autograd.gradcheck(total, (logits, x, matrices))


def test_what_makes_no_sense_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match="top_k=9 of num_experts=8"):
        RouterConfig(num_experts=8, top_k=9)
    with pytest.raises(ConfigError, match="leave capacity"):
        RouterConfig(num_experts=8, top_k=2, chooser="expert", capacity=INFINITE)
    with pytest.raises(ConfigError, match="must be positive"):
        Capacity(factor=0.0, rule="per-token")
    with pytest.raises(ShapeError, match=r"logits has shape \[3, 4\]"):
        choose_experts(torch.zeros(3, 4), RouterConfig(num_experts=8, top_k=2))
