"""Which experts each token goes to, and the losses that keep their load even: the definitions, in plain torch.

    logits [N, E]  --choose_experts-->  Routing  --dispatch-->  Dispatch: assignments in the order of their experts
    rows x[dispatch.tokens]  --experts-->  outputs [A, D]  --combine-->  [N, D]

Tokens choose experts (Shazeer et al. 2017, arXiv:1701.06538), all of them kept or only as many as an expert has room for; or experts choose
tokens (Zhou et al. 2022, arXiv:2202.09368), which is written in the same form: each token lists all experts, and is kept by those that
chose it. So whatever reads a `Routing` reads both.
"""

# N tokens, E experts, k choices of a token, A assignments that are kept (N k where none is dropped), D hidden size

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tripod.errors import ConfigError
from tripod.ops.shape import expect_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many tokens an expert takes of a group. First choices come before second ones, and among equals earlier tokens before later.

    Two definitions are in use, and the same factor means something else in each. With T tokens in a group:

        rule="per-token"       max(minimum, round(factor T / E)): Flaxformer, which trained OpenMoE. The k is absent, so with top-2 and
                               factor 1.25 at least 37.5 % of the assignments are dropped even when perfectly balanced.
        rule="per-assignment"  floor(factor k T / E), up to the next even number, at least the minimum: ColossalAI's port.

    Raises:
        ConfigError: a factor, minimum or group that is not positive.
    """

    factor: float  # infinite: nothing is dropped
    rule: Literal["per-token", "per-assignment"]
    minimum: int = 4
    group_tokens: int | None = None  # consecutive tokens that compete with each other; None: all that are routed together

    def __post_init__(self) -> None:
        if not self.factor > 0 or self.minimum < 1 or (self.group_tokens is not None and self.group_tokens < 1):
            raise ConfigError(f"{self} leaves no room; factor, minimum and group_tokens must be positive")
        if self.rule not in ("per-token", "per-assignment"):
            raise ConfigError(f"rule={self.rule!r} is unknown; use 'per-token' (Flaxformer) or 'per-assignment' (ColossalAI)")

    def slots(self, num_tokens: int, num_experts: int, top_k: int) -> int:
        """Tokens that each expert takes of a group of `num_tokens`; never more than there are."""
        wanted = self.factor * num_tokens / num_experts
        if wanted >= num_tokens:
            return num_tokens
        if self.rule == "per-token":
            return min(num_tokens, max(self.minimum, round(wanted)))
        rounded = math.floor(wanted * top_k)
        return min(num_tokens, max(self.minimum, rounded + rounded % 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """How a layer chooses among its experts.

    Raises:
        ConfigError: values that do not fit each other.
    """

    num_experts: int
    top_k: int  # choices of a token; where experts choose: how many tokens on average, which sets their number
    gate: Literal["softmax", "sigmoid"] = "softmax"
    is_normalized: bool = False  # the weights of a token's chosen experts sum to 1, instead of being the gates as they are
    scale: float = 1.0  # of the weights
    chooser: Literal["token", "expert"] = "token"
    capacity: Capacity | None = None  # while training; None: dropless. Outside of training nothing is dropped, whatever stands here
    jitter: float = 0.0  # while training: the router's input is multiplied by numbers out of [1 - jitter, 1 + jitter]
    has_selection_bias: bool = False  # a bias on the choice alone keeps the load even, without a loss; see `balanced_bias`
    precision: Literal["float32", "model"] = "float32"  # of the router's product; its softmax is always float32

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"top_k={self.top_k} of num_experts={self.num_experts}; choose between 1 and all of them")
        if self.gate not in ("softmax", "sigmoid"):
            raise ConfigError(f"gate={self.gate!r} is unknown; use softmax or sigmoid")
        if self.chooser not in ("token", "expert"):
            raise ConfigError(f"chooser={self.chooser!r} is unknown; use token or expert")
        if self.chooser == "expert" and (self.capacity is not None or self.has_selection_bias):
            raise ConfigError("experts that choose are evenly loaded by themselves; leave capacity and has_selection_bias out")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter={self.jitter} is not in [0, 1)")


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """What a router decided for N tokens."""

    logits: Tensor  # [N, E], float32
    gates: Tensor  # [N, E], float32: softmax or sigmoid of the logits
    expert_ids: Tensor  # [N, k], int64, best first; [N, E], in order, where experts choose
    weights: Tensor  # [N, k], float32: the factor of each chosen expert's output
    is_kept: Tensor | None = None  # [N, k], bool; None: every assignment

    @property
    def num_experts(self) -> int:
        return self.logits.shape[-1]

    def load(self) -> Tensor:
        """[E], int64: the assignments that each expert gets, dropped ones not counted."""
        kept = self.expert_ids.flatten() if self.is_kept is None else self.expert_ids[self.is_kept]
        return _counts(kept, self.num_experts)


@dataclass(frozen=True, slots=True, eq=False)
class Dispatch:
    """The assignments that are kept, in the order of their experts, and of the tokens for one expert."""

    tokens: Tensor  # [A], int64: whose row
    places: Tensor  # [A], int64: where in the flattened [N, k]
    counts: Tensor  # [E], int64: of each expert


def choose_experts(
    logits: Tensor, config: RouterConfig, *, selection_bias: Tensor | None = None, capacity: Capacity | None = None
) -> Routing:
    """Route tokens by their logits.

    Args:
        logits: [N, E].
        config: of the router; its capacity is not looked at.
        selection_bias: [E], added to the gates for the choice, not for the weights (DeepSeek-V3, arXiv:2412.19437).
        capacity: what each expert has room for; None: everything is kept.

    Raises:
        ShapeError: the logits are not [N, E], or the bias not [E].
    """
    expect_shape("logits", logits, (None, config.num_experts))
    logits = logits.float()
    gates = logits.softmax(-1) if config.gate == "softmax" else logits.sigmoid()
    if config.chooser == "expert":
        return _chosen_by_experts(logits, gates, config)
    preferred = gates
    if selection_bias is not None:
        expect_shape("selection_bias", selection_bias, (config.num_experts,))
        preferred = gates + selection_bias
    expert_ids = preferred.topk(config.top_k, dim=-1).indices
    weights = gates.gather(-1, expert_ids)
    if config.is_normalized:
        weights = weights / weights.sum(-1, keepdim=True)
    if config.scale != 1.0:
        weights = weights * config.scale
    is_kept = None if capacity is None else within_capacity(expert_ids, config.num_experts, capacity)
    return Routing(logits, gates, expert_ids, weights, is_kept)


def _chosen_by_experts(logits: Tensor, gates: Tensor, config: RouterConfig) -> Routing:
    num_tokens, num_experts = logits.shape
    num_slots = min(num_tokens, max(1, round(num_tokens * config.top_k / num_experts)))
    chosen = gates.topk(num_slots, dim=0).indices  # [slots, E]
    is_kept = torch.zeros_like(gates, dtype=torch.bool).scatter(0, chosen, True)
    weights = gates * is_kept
    if config.is_normalized:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    if config.scale != 1.0:
        weights = weights * config.scale
    return Routing(logits, gates, torch.arange(num_experts, device=logits.device).expand(num_tokens, -1), weights, is_kept)


def within_capacity(expert_ids: Tensor, num_experts: int, capacity: Capacity) -> Tensor:
    """Which assignments are kept: bool [N, k] for expert_ids [N, k]. All first choices, by position, then all second ones, and so on."""
    num_tokens, top_k = expert_ids.shape
    size = capacity.group_tokens or max(num_tokens, 1)
    kept = [_first_come(group, num_experts, capacity.slots(len(group), num_experts, top_k)) for group in torch.split(expert_ids, size)]
    return torch.cat(kept) if kept else torch.ones_like(expert_ids, dtype=torch.bool)


def _first_come(expert_ids: Tensor, num_experts: int, num_slots: int) -> Tensor:
    wanted = expert_ids.T.flatten()  # choice by choice
    order = wanted.argsort(stable=True)
    ends = _counts(wanted, num_experts).cumsum(0)
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    ranks = torch.empty_like(wanted)
    ranks[order] = torch.arange(len(wanted), device=wanted.device) - starts[wanted[order]]  # how many came before, for the same expert
    return (ranks < num_slots).view(expert_ids.shape[1], -1).T


def dispatch(routing: Routing) -> Dispatch:
    """Sort the assignments of a routing by expert."""
    num_experts, top_k = routing.num_experts, routing.expert_ids.shape[1]
    wanted = routing.expert_ids.flatten()
    if routing.is_kept is not None:
        wanted = wanted.masked_fill(~routing.is_kept.flatten(), num_experts)  # behind the last expert
    counts = _counts(wanted, num_experts + 1)[:num_experts]
    places = wanted.argsort(stable=True)
    if routing.is_kept is not None:
        places = places[: int(counts.sum())]
    return Dispatch(places // top_k, places, counts)


def _counts(expert_ids: Tensor, num_experts: int) -> Tensor:
    """How often each expert is named: [...] -> [E]. Unlike torch.bincount, without waiting for a GPU."""
    ids = expert_ids.flatten()
    return ids.new_zeros(num_experts).scatter_add(0, ids, torch.ones_like(ids))


def combine(outputs: Tensor, routing: Routing, sent: Dispatch) -> Tensor:
    """Add up what the experts made of each token, times its weights: outputs [A, D] -> [N, D], in float32 and then in their dtype."""
    num_tokens, top_k = routing.expert_ids.shape
    if routing.is_kept is None:  # a token's own terms, in the order of its choices
        spread = torch.empty_like(outputs).index_copy(0, sent.places, outputs).view(num_tokens, top_k, outputs.shape[-1])
        return (spread * routing.weights[..., None]).sum(1).to(outputs.dtype)
    weighted = outputs * routing.weights.flatten()[sent.places, None]
    return weighted.new_zeros(num_tokens, outputs.shape[-1]).index_add(0, sent.tokens, weighted).to(outputs.dtype)


def jitter(x: Tensor, amount: float, generator: torch.Generator | None = None) -> Tensor:
    """x times numbers that are uniform in [1 - amount, 1 + amount] (Fedus et al. 2021, arXiv:2101.03961): [..., D] -> [..., D].

    Without a generator they are of torch's own, as those of `nn.Dropout`.
    """
    device = x.device if generator is None else generator.device
    noise = torch.empty(x.shape, dtype=torch.float32, device=device).uniform_(1.0 - amount, 1.0 + amount, generator=generator)
    return x * noise.to(x)


def balance_loss(routing: Routing, *, per: Literal["token", "assignment"] = "token", group_tokens: int | None = None) -> Tensor:
    """How unevenly the experts are used: E times the sum over them of f P, with P the mean gate of an expert.

    f is differentiated as a constant; assignments count whether or not they are kept. The forms that are published:

        per="token"       f is the share of tokens that chose the expert. Perfectly even: k. Transformers' and Flaxformer's, which writes
                          the same number as E^2 times the mean of f P.
        per="assignment"  f is the share of assignments. Perfectly even: 1. Switch's (arXiv:2101.03961, equation 4) and MegaBlocks',
                          in which OLMoE's coefficient is meant.

    Args:
        routing: of the tokens of one layer. Sigmoid gates are first divided by their sum.
        per: the form.
        group_tokens: the mean over groups of so many consecutive tokens; None: all of them at once.

    Returns:
        A scalar.
    """
    shares = [_balance(*group) for group in _groups(routing, group_tokens)]
    loss = torch.stack(shares).mean()
    return loss if per == "token" else loss / routing.expert_ids.shape[1]


def _groups(routing: Routing, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    size = size or len(routing.gates)
    gates = routing.gates / routing.gates.sum(-1, keepdim=True)
    return zip(torch.split(gates, size), torch.split(routing.expert_ids, size), strict=True)


def _balance(gates: Tensor, expert_ids: Tensor) -> Tensor:
    num_tokens, num_experts = gates.shape
    share = _counts(expert_ids, num_experts).to(gates) / num_tokens
    return num_experts * (share * gates.mean(0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """The mean of logsumexp(logits)^2, which keeps logits small (ST-MoE, Zoph et al. 2022, arXiv:2202.08906): [..., E] -> a scalar.

    Of a router's logits, or of the output's: then with V in the place of E.
    """
    return logits.float().logsumexp(-1).square().mean()


def balanced_bias(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """The next selection bias: higher by `rate` for experts with less than the mean load, lower for those with more.

    Wang et al. 2024, arXiv:2408.15664: balance without a loss.

    Args:
        bias: [E].
        load: [E]: assignments of each expert in the step, over all processes.
        rate: 0.001 in DeepSeek-V3.
    """
    load = load.to(bias.dtype)
    return bias + rate * (load.mean() - load).sign()
