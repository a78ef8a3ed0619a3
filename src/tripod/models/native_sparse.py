"""Blocks with experts, and OpenMoE's, over the native kernels: the attention in one call, then a few for what follows it.

As in dense blocks a row has the same bits whatever its neighbours: its choice, its experts and the order of their sum are its own.
"""

# N tokens, D hidden size, F size of an expert

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tripod.models.expert_cache import ExpertCache
from tripod.models.llama import LlamaBlock, LlamaMLP, RMSNorm
from tripod.models.moe import Experts, Router, SparseMLP
from tripod.models.native_attention import NativeLlamaAttention
from tripod.models.native_parts import NativeGateUp, NativeNorm, native, take_gate_up, take_linear
from tripod.models.openmoe import DoubleGatedMLP, OpenMoEBlock
from tripod.models.packed_file import FreshPacker, Packer
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu.experts import ExpertTable, PackedExpert, route
from tripod.ops.kernels.cpu.fused_layer import FusedLayer, StepRows
from tripod.ops.kernels.cpu.linear import linear
from tripod.ops.kernels.cpu.paged_attention import KVPool
from tripod.ops.linear_formats import LinearFormat
from tripod.ops.moe_routing import Routing


class NativeRouter(Router):
    """A `Router` in float32, whatever the weights beside it are kept in."""

    def __init__(self, router: Router) -> None:
        nn.Module.__init__(self)
        self.config, self.layer = router.config, router.layer
        self._packed = take_linear([router.weight.detach()], "f32", FreshPacker())
        self._bias = None if router.selection_bias is None else router.selection_bias.float().contiguous()

    def forward(self, x: Tensor) -> Routing:  # [N, D]
        return route(linear(x, self._packed), self.config, self._bias)


class NativeSparseMLP(nn.Module):
    """x + SparseMLP(norm x), in place."""

    def __init__(
        self, norm: RMSNorm, sparse: SparseMLP, weight_format: LinearFormat, packer: Packer, cache: ExpertCache | None = None
    ) -> None:
        super().__init__()
        self.norm = NativeNorm(norm)
        self.router = NativeRouter(sparse.router)
        experts = _packed_experts(sparse.experts, weight_format, packer)
        self.experts = ExpertTable(experts) if cache is None else cache.layer(experts)
        self.num_bytes = sum(expert.num_bytes for expert in experts)
        self.gate_up = self.down = self.shared_gate = None
        if sparse.shared is not None:
            assert isinstance(sparse.shared, LlamaMLP)
            self.gate_up = NativeGateUp(sparse.shared.gate.weight, sparse.shared.up.weight, weight_format, packer)
            self.down = native(sparse.shared.down, weight_format, packer)
            self.num_bytes += self.gate_up.num_bytes + self.down.num_bytes
            if sparse.shared_gate is not None:
                self.shared_gate = native(sparse.shared_gate, "f32", FreshPacker())

    def forward(self, x: Tensor) -> None:  # [N, D], float32
        normed = self.norm(x)
        self.experts.add(normed, self.router(normed), x)
        if self.gate_up is not None and self.down is not None:
            hidden = self.gate_up(normed)
            if self.shared_gate is None:
                self.down.add_to(x, hidden)
            else:
                x += self.shared_gate(normed).sigmoid_() * self.down(hidden)


def _packed_experts(experts: Experts, weight_format: LinearFormat, packer: Packer) -> list[PackedExpert]:
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

    def __init__(self, norm: RMSNorm, mlp: DoubleGatedMLP, weight_format: LinearFormat, packer: Packer) -> None:
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

    def __call__(self, x: Tensor, pool: KVPool, index: int, step: StepRows) -> None:
        self.attention(x, pool, index, step)
        self.rest(x)


class NativeSparseBlock(nn.Module):
    """A `LlamaBlock` with experts, or an `OpenMoEBlock`."""

    def __init__(
        self, block: LlamaBlock | OpenMoEBlock, weight_format: LinearFormat, packer: Packer, cache: ExpertCache | None = None
    ) -> None:
        super().__init__()
        self.attention = NativeLlamaAttention(block.attention_norm, block.attention, weight_format, packer)
        self.mlps = nn.ModuleList([_native_mlp(block.mlp_norm, block.mlp, weight_format, packer, cache)])
        if isinstance(block, OpenMoEBlock) and block.extra_norm is not None and block.extra_mlp is not None:
            self.mlps.append(NativeDoubleGatedMLP(block.extra_norm, block.extra_mlp, weight_format, packer))
        self.num_bytes: int = self.attention.num_bytes + sum(mlp.num_bytes for mlp in self.mlps)  # type: ignore[misc]

    def fused(self) -> AttentionThen | None:
        """The block in few calls; None where its attention is no one call."""
        return AttentionThen(FusedLayer(**self.attention.parts()), self._add_mlps) if self.attention.is_fusible else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [N, D] -> [N, D]
        x = self.attention(x, cos, sin, attend)
        self._add_mlps(x)
        return x

    def _add_mlps(self, x: Tensor) -> None:
        for mlp in self.mlps:
            mlp(x)


def _native_mlp(
    norm: RMSNorm, mlp: nn.Module, weight_format: LinearFormat, packer: Packer, cache: ExpertCache | None
) -> NativeSparseMLP | NativeDoubleGatedMLP:
    if isinstance(mlp, SparseMLP):
        return NativeSparseMLP(norm, mlp, weight_format, packer, cache)
    assert isinstance(mlp, DoubleGatedMLP)
    return NativeDoubleGatedMLP(norm, mlp, weight_format, packer)
