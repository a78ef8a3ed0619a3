"""Blocks with experts, and OpenMoE's, over the native kernels: a block in one call, or its attention in one and a few for what follows.

As in dense blocks a row has the same bits whatever its neighbours: its choice, its experts and the order of their sum are its own.
"""

# N tokens, D hidden size, F size of an expert

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tripod.models.expert_cache import ExpertCache
from tripod.models.llama import LlamaBlock, LlamaMLP, RMSNorm
from tripod.models.moe import Experts, Router, SparseMLP
from tripod.models.native_attention import NativeLlamaAttention
from tripod.models.native_parts import NativeGateUp, NativeNorm, native, take_gate_up, take_linear
from tripod.models.openmoe import DoubleGatedMLP, OpenMoEBlock
from tripod.models.packed_file import Packer
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu.experts import ExpertTable, PackedExpert, route, score
from tripod.ops.kernels.cpu.fused_layer import FusedLayer, Routed, StepRows
from tripod.ops.kernels.cpu.paged_attention import KVPool
from tripod.ops.linear import WeightFormat
from tripod.ops.moe_routing import RouterConfig, Routing


class NativeRouter(Router):
    """A `Router` in float32, whatever the weights beside it are kept in."""

    def __init__(self, router: Router) -> None:
        nn.Module.__init__(self)
        self.config, self.layer = router.config, router.layer
        self._weight = router.weight.detach().float().contiguous()
        self._bias = None if router.selection_bias is None else router.selection_bias.float().contiguous()

    @property
    def is_watched(self) -> bool:
        """Whether somebody wants to be told what it decides, as `watch_routing` does."""
        return bool(self._forward_hooks)

    def routed(self, experts: ExpertTable) -> Routed:
        """The same as a part of a fused layer, with its experts."""
        return Routed(self._weight, self.config, experts, self._bias)

    def forward(self, x: Tensor) -> Routing:  # [N, D]
        return route(score(x, self._weight), self.config, self._bias)


class NativeSparseMLP(nn.Module):
    """x + SparseMLP(norm x), in place."""

    def __init__(
        self, norm: RMSNorm, sparse: SparseMLP, weight_format: WeightFormat, packer: Packer, cache: ExpertCache | None = None
    ) -> None:
        super().__init__()
        self.norm = NativeNorm(norm)
        self.router = NativeRouter(sparse.router)
        experts = _packed_experts(sparse.experts, weight_format, packer)
        self.experts = ExpertTable(experts) if cache is None else cache.layer(experts)
        self.num_bytes = sum(expert.num_bytes for expert in experts)
        self.shared: ExpertTable | None = None  # of one expert, to which all rows go
        self._shared_gate: Tensor | None = None
        if sparse.shared is not None:
            assert isinstance(sparse.shared, LlamaMLP)
            gate_up = take_gate_up(sparse.shared.gate.weight, sparse.shared.up.weight, weight_format, packer)
            shared = PackedExpert(gate_up, take_linear([sparse.shared.down.weight], weight_format, packer))
            self.shared = ExpertTable([shared])
            self.num_bytes += shared.num_bytes
            if sparse.shared_gate is not None:
                self._shared_gate = sparse.shared_gate.weight.detach().float().contiguous()

    def parts(self) -> dict[str, Any] | None:
        """What a `FusedLayer` wants to know of it; None where it has a shared expert, or experts that must be fetched."""
        if self.shared is not None or not isinstance(self.experts, ExpertTable):
            return None
        return {"mlp_norm": self.norm.norm, "routed": self.router.routed(self.experts)}

    def forward(self, x: Tensor) -> None:  # [N, D], float32
        normed = self.norm(x)
        self.experts.add(normed, self.router(normed), x)
        if self.shared is not None:
            # Its factor is the kernel's sigmoid: torch's gives a row other bits where it stands last.
            logits = torch.zeros(len(x), 1) if self._shared_gate is None else score(normed, self._shared_gate)
            self.shared.add(normed, route(logits, _FOR_ALL if self._shared_gate is None else _FOR_ALL_BY_A_GATE), x)


_FOR_ALL = RouterConfig(num_experts=1, top_k=1)  # the softmax of one number is 1
_FOR_ALL_BY_A_GATE = RouterConfig(num_experts=1, top_k=1, gate="sigmoid")


def _packed_experts(experts: Experts, weight_format: WeightFormat, packer: Packer) -> list[PackedExpert]:
    packed = []
    for first, down in zip(experts.up.detach(), experts.down.detach(), strict=True):
        if experts.gating == "swiglu":
            gate, up = first.chunk(2)
            factor = None
        else:
            up, gate, last = first.chunk(3)  # a * silu(b) * up: b is the gate, a what it multiplies
            factor = take_linear([last], weight_format, packer)
        packed.append(PackedExpert(take_gate_up(gate, up, weight_format, packer), take_linear([down], weight_format, packer), factor))
    return packed


class NativeDoubleGatedMLP(nn.Module):
    """x + DoubleGatedMLP(norm x), in place."""

    def __init__(self, norm: RMSNorm, mlp: DoubleGatedMLP, weight_format: WeightFormat, packer: Packer) -> None:
        super().__init__()
        self.norm = NativeNorm(norm)
        linear_gate, gate = mlp.gate.weight.chunk(2)
        self.gate_up = NativeGateUp(gate, linear_gate, weight_format, packer)
        self.up, self.down = native(mlp.up, weight_format, packer), native(mlp.down, weight_format, packer)
        self.num_bytes = self.gate_up.num_bytes + self.up.num_bytes + self.down.num_bytes

    def forward(self, x: Tensor) -> None:  # [N, D], float32
        normed = self.norm(x)
        self.down.add_to(x, self.gate_up(normed).mul_(self.up(normed)))


@dataclass(frozen=True, slots=True)
class AttentionThen:
    """A layer in some calls, in place of a `FusedLayer`."""

    attention: FusedLayer
    rest: Callable[[Tensor], None]  # changes the stream in place

    def __call__(self, x: Tensor, pool: KVPool, index: int, step: StepRows, *, is_last: bool = False) -> None:
        self.attention(x, pool, index, step, is_last=is_last)
        self.rest(x[: step.num_kept] if is_last else x)


@dataclass(frozen=True, slots=True)
class UnlessWatched:
    """A layer in one call, which tells nobody what its router decides; in some calls while somebody watches it."""

    router: NativeRouter
    whole: FusedLayer
    told: AttentionThen

    def __call__(self, x: Tensor, pool: KVPool, index: int, step: StepRows, *, is_last: bool = False) -> None:
        layer = self.told if self.router.is_watched else self.whole
        layer(x, pool, index, step, is_last=is_last)


class NativeSparseBlock(nn.Module):
    """A `LlamaBlock` with experts, or an `OpenMoEBlock`."""

    def __init__(
        self, block: LlamaBlock | OpenMoEBlock, weight_format: WeightFormat, packer: Packer, cache: ExpertCache | None = None
    ) -> None:
        super().__init__()
        self.attention = NativeLlamaAttention(block.attention_norm, block.attention, weight_format, packer)
        mlps = [_native_mlp(block.mlp_norm, block.mlp, weight_format, packer, cache)]
        if isinstance(block, OpenMoEBlock) and block.extra_norm is not None and block.extra_mlp is not None:
            mlps.append(NativeDoubleGatedMLP(block.extra_norm, block.extra_mlp, weight_format, packer))
        self.mlps = nn.ModuleList(mlps)
        self.num_bytes = self.attention.num_bytes + sum(mlp.num_bytes for mlp in mlps)

    def fused(self) -> UnlessWatched | AttentionThen | None:
        """The block in one or few calls; None where its attention is no one call."""
        if not self.attention.is_fusible:
            return None
        told = AttentionThen(FusedLayer(**self.attention.parts()), self._add_mlps)
        match list(self.mlps):
            case [NativeSparseMLP() as sparse] if (parts := sparse.parts()) is not None:
                return UnlessWatched(sparse.router, FusedLayer(**self.attention.parts(), **parts), told)
        return told

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [N, D] -> [N, D]
        x = self.attention(x, cos, sin, attend)
        self._add_mlps(x)
        return x

    def _add_mlps(self, x: Tensor) -> None:
        for mlp in self.mlps:
            mlp(x)


def _native_mlp(
    norm: RMSNorm, mlp: nn.Module, weight_format: WeightFormat, packer: Packer, cache: ExpertCache | None
) -> NativeSparseMLP | NativeDoubleGatedMLP:
    if isinstance(mlp, SparseMLP):
        return NativeSparseMLP(norm, mlp, weight_format, packer, cache)
    assert isinstance(mlp, DoubleGatedMLP)
    return NativeDoubleGatedMLP(norm, mlp, weight_format, packer)
