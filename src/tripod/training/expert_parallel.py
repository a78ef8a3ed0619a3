"""Experts shared by processes: each holds some of them, and tokens travel to their experts and back (GShard, Lepikhin et al. 2020).

Everything but the experts is in every process, as in data parallelism, and so are the decisions of the routers: only rows of tokens are
exchanged, by all-to-all. Rows of an expert come in the order of the processes, which is that of the rows of the step, so that one process
and several compute the same products, of which only sums over tokens are rounded otherwise.
"""

# A assignments of this process, C that came to its experts, D hidden size, E experts, R processes

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from tripod.errors import ConfigError
from tripod.models.moe import Experts
from tripod.ops.expert_mlp import expert_mlp
from tripod.ops.kernels import expert_mlp as fast
from tripod.ops.moe_routing import Routing, combine, dispatch
from tripod.training.parallel import local


def share_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave to each process of a mesh its part of the experts of each layer; parameters keep their names.

    Raises:
        ConfigError: the model is dense, or its experts cannot be shared equally.
    """
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    if not layers:
        raise ConfigError("parallel.style=experts shares the experts of a sparse model, and this one is dense; use replicate or shard")
    for layer in layers:
        if len(layer.up) % mesh.size():
            raise ConfigError(f"{len(layer.up)} experts cannot be shared by {mesh.size()} processes equally")
        for name, parameter in list(layer.named_parameters(recurse=False)):
            part = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None))
            part.grad = torch.zeros_like(part)  # also where no token comes
            setattr(layer, name, part)
        layer.__class__ = SharedExperts
        layer.group = mesh.get_group()  # type: ignore[assignment]


class SharedExperts(Experts):
    """Experts of which this process holds some."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # [N, D] -> [N, D]
        num_processes = self.group.size()
        sent = dispatch(routing)
        counts = sent.counts.view(num_processes, -1)  # [R, E / R]: rows for the experts of each process
        coming = torch.empty_like(counts)
        dist.all_to_all_single(coming, counts.contiguous(), group=self.group)  # [R, E / R]: rows from each process for the experts here
        sizes_out, sizes_in = counts.sum(1).tolist(), coming.sum(1).tolist()
        rows = _exchanged(x[sent.tokens], sizes_out, sizes_in, self.group)  # [C, D], by process and then by expert
        if len(rows):
            rows = self._computed(rows, coming)  # else none of this layer's tokens came here; the way back is still walked, for gradients
        return combine(_exchanged(rows, sizes_in, sizes_out, self.group), routing, sent)

    def _computed(self, rows: Tensor, coming: Tensor) -> Tensor:  # [C, D], by process and then by expert -> [C, D]
        num_processes, num_experts = coming.shape
        expert_ids = torch.arange(num_experts, device=rows.device).repeat(num_processes).repeat_interleave(coming.flatten())[:, None]
        gates = rows.new_zeros(len(rows), num_experts, dtype=torch.float32)  # which nobody asks for
        here = Routing(gates, gates, expert_ids, torch.ones_like(expert_ids, dtype=torch.float32))
        up, down = local(self.up), local(self.down)
        run = fast.expert_mlp if fast.is_faster(rows, here, up) else expert_mlp
        return run(rows, here, up, down, self.gating)


def _exchanged(rows: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup) -> Tensor:
    """[A, D] rows by process -> [C, D]."""
    return _Exchange.apply(rows, sizes_out, sizes_in, group)  # type: ignore[no-any-return, no-untyped-call]


class _Exchange(torch.autograd.Function):
    """Rows to the processes and from them; backwards, their gradients the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sizes_out, sizes_in), group
        received = rows.new_empty(sum(sizes_in), rows.shape[1])
        dist.all_to_all_single(received, rows.contiguous(), sizes_in, sizes_out, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sizes_out, sizes_in = ctx.sizes
        gradient = gradients[0].new_empty(sum(sizes_out), gradients[0].shape[1])
        dist.all_to_all_single(gradient, gradients[0].contiguous(), sizes_out, sizes_in, group=ctx.group)
        return gradient, None, None, None
