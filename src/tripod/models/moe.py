"""The sparse layer of all our architectures: a router, experts, and what every token goes through beside them.

Who wants to know what the routers decide (a loss, a recorder) watches them from outside:

    with watch_routing(model, lambda layer, routing: ...):
        model.hidden(token_ids, positions, attend)
"""

# N tokens, D hidden size, F size of an expert, E experts, R rows of an expert's first matrix (2 F, or 3 F with a double gate)

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tripod.ops.expert_mlp import Gating, expert_mlp
from tripod.ops.kernels import expert_mlp as fast
from tripod.ops.kernels.moe_routing import choose_experts, router_logits
from tripod.ops.moe_routing import RouterConfig, Routing, jitter

WatchRouting: TypeAlias = Callable[[int, Routing], None]  # (layer, what its router decided), in each forward pass


class HasModules(Protocol):
    """A module, or what is made of modules."""

    def modules(self) -> Iterator[nn.Module]: ...


class Router(nn.Module):
    """Scores experts for each token. Its result is a `Routing`, so that a forward hook sees what it decided."""

    selection_bias: Tensor | None

    def __init__(self, config: RouterConfig, hidden_size: int, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        self.register_buffer("selection_bias", torch.zeros(config.num_experts) if config.has_selection_bias else None)
        self.generator: torch.Generator | None = None  # of the jitter; None: torch's own

    def forward(self, x: Tensor) -> Routing:  # [N, D]
        config = self.config
        if self.training and config.jitter:
            x = jitter(x, config.jitter, self.generator)
        return choose_experts(
            self.logits(x),
            config,
            selection_bias=self.selection_bias,
            capacity=config.capacity if self.training else None,
        )

    def logits(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, E]."""
        if self.config.precision == "model":
            return router_logits(x, self.weight)
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.float(), self.weight.float())


class Experts(nn.Module):
    """Gated feed-forward layers without biases, one below the other in two tensors."""

    def __init__(self, num_experts: int, hidden_size: int, expert_size: int, gating: Gating = "swiglu") -> None:
        super().__init__()
        self.gating: Gating = gating
        num_rows = (2 if gating == "swiglu" else 3) * expert_size
        self.up = nn.Parameter(torch.empty(num_experts, num_rows, hidden_size))  # [E, R, D]
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, expert_size))  # [E, D, F]

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # [N, D] -> [N, D]
        run = fast.expert_mlp if fast.is_faster(x, routing, self.up) else expert_mlp
        return run(x, routing, self.up, self.down, self.gating)


class SparseMLP(nn.Module):
    """Each token through the experts that its router chose; all tokens through the shared expert, where there is one."""

    def __init__(self, router: Router, experts: Experts, shared: nn.Module | None = None, shared_gate: nn.Linear | None = None) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.shared_gate = shared_gate  # one output: its sigmoid is the factor of the shared expert (Qwen-MoE)

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        rows = x.flatten(0, -2)
        result: Tensor = self.experts(rows, self.router(rows))
        if self.shared is not None:
            shared = self.shared(rows)
            result = result + (shared if self.shared_gate is None else self.shared_gate(rows).sigmoid() * shared)
        return result.view(x.shape)


@contextmanager
def watch_routing(model: HasModules, watch: WatchRouting) -> Iterator[None]:
    """Within the block, tell `watch` what each router of the model, plain or packed, decides, gradients and all."""

    def tell(router: nn.Module, given: object, routing: Routing) -> None:
        assert isinstance(router, Router)
        watch(router.layer, routing)

    handles = [module.register_forward_hook(tell) for module in model.modules() if isinstance(module, Router)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(slots=True)
class RoutingRecord:
    """Where the tokens of some forward passes went, layer by layer, in the order in which they came."""

    _expert_ids: dict[int, list[Tensor]] = field(default_factory=dict)
    _weights: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a router."""
        return tuple(sorted(self._expert_ids))

    def expert_ids(self, layer: int) -> Tensor:
        """[N, k], int64, best first."""
        return torch.cat(self._expert_ids[layer])

    def weights(self, layer: int) -> Tensor:
        """[N, k], float32; 0 where the assignment was dropped."""
        return torch.cat(self._weights[layer])

    def add(self, layer: int, routing: Routing) -> None:
        weights = routing.weights.detach()
        if routing.is_kept is not None:
            weights = weights * routing.is_kept
        self._expert_ids.setdefault(layer, []).append(routing.expert_ids.cpu())
        self._weights.setdefault(layer, []).append(weights.cpu())


@contextmanager
def record_routing(model: HasModules) -> Iterator[RoutingRecord]:
    """Within the block, every forward pass of the model is recorded."""
    record = RoutingRecord()
    with watch_routing(model, record.add):
        yield record
