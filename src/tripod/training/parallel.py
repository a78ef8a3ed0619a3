"""One run on several processes, by torch.distributed: which rows each one trains, and how weights and gradients are kept.

A step trains the same rows whatever the number of processes: data rank r of R takes part r of them, gradients are summed and divided by
the targets of all. Only the rounding of those sums differs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from tripod.errors import ConfigError
from tripod.models.architectures import Decoder
from tripod.models.gpt_neox import GPTNeoXBlock
from tripod.training.recipe import ParallelRecipe

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train one run: `tensor` neighbours share each matrix, the rest share the rows of a step."""

    recipe: ParallelRecipe
    mesh: DeviceMesh | None = None  # [data, tensor]; None: alone

    @property
    def is_alone(self) -> bool:
        return self.mesh is None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.mesh is None or dist.get_rank() == 0

    @property
    def num_data(self) -> int:
        return 1 if self.mesh is None else self.mesh["data"].size()

    @property
    def is_sharded(self) -> bool:
        return self.mesh is not None and self.recipe.style == "shard"

    @property
    def shares_experts(self) -> bool:
        """Whether each process holds some of the experts of a sparse model, and all of everything else."""
        return self.mesh is not None and self.recipe.style == "experts"

    def part(self, num_rows: int) -> slice:
        """Which of the rows of a step this process trains.

        Raises:
            ConfigError: the rows cannot be shared equally.
        """
        if num_rows % self.num_data:
            raise ConfigError(f"{num_rows} rows a step cannot be shared by {self.num_data} processes equally; change batch.rows")
        if self.mesh is None:
            return slice(0, num_rows)
        rank, share = self.mesh["data"].get_local_rank(), num_rows // self.num_data
        return slice(rank * share, (rank + 1) * share)

    def sum_over_data(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes that have different rows, in place."""
        if self.mesh is not None and self.num_data > 1:
            dist.all_reduce(value, group=self.mesh["data"].get_group())
        return value

    def sum_over_tensor(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes that share each matrix, in place."""
        if self.mesh is not None and self.recipe.tensor > 1:
            dist.all_reduce(value, group=self.mesh["tensor"].get_group())
        return value

    def sum_over_all(self, value: int) -> int:
        if self.mesh is None:
            return value
        total = torch.tensor(value, device=self.mesh.device_type)
        dist.all_reduce(total)
        return int(total.item())

    @property
    def gradient_factor(self) -> float:
        """By which gradients are multiplied before their reduction, which divides by the number of processes where they are sharded."""
        return float(self.num_data) if self.is_sharded else 1.0

    def from_first(self, value: _Value) -> _Value:
        """The value that the first process has; all others wait for it."""
        if self.mesh is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def reduce_gradients(self, model: nn.Module) -> None:
        """Sum the gradients over the processes that have different rows. Sharded ones have been summed by the backward pass."""
        if self.mesh is None or self.is_sharded or self.num_data == 1:
            return
        group = self.mesh["data"].get_group()
        parameters = [parameter for parameter in model.parameters() if not is_shared(parameter, self.mesh, "data")]  # not its own experts
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        for work in [dist.all_reduce(gradient, group=group, async_op=True) for gradient in gradients]:
            work.wait()


ALONE = Processes(ParallelRecipe())


@contextmanager
def joined_processes(recipe: ParallelRecipe, device: torch.device) -> Iterator[Processes]:
    """Within the block, this process and the others that torchrun (or `tripod train --processes`) started train one run.

    Raises:
        ConfigError: the recipe's layout does not fit their number.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        if recipe.tensor > 1:
            raise ConfigError(f"parallel.tensor={recipe.tensor} needs as many processes; start them: tripod train --processes N")
        yield Processes(recipe)
        return
    if world_size % recipe.tensor:
        raise ConfigError(f"parallel.tensor={recipe.tensor} does not divide the {world_size} processes")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(device.type, (world_size // recipe.tensor, recipe.tensor), mesh_dim_names=("data", "tensor"))
        yield Processes(recipe, mesh)
    finally:
        dist.destroy_process_group()


def parallelize(model: Decoder, processes: Processes) -> None:
    """Lay the parameters of a model, which are the same in all processes, out over them.

    Raises:
        ConfigError: the heads or the feed-forward size cannot be shared by parallel.tensor processes, or the experts by all.
    """
    if processes.mesh is None:
        return
    if processes.recipe.tensor > 1:
        _share_matrices(model, processes.mesh["tensor"])
    if processes.shares_experts:
        from tripod.training.expert_parallel import share_experts

        share_experts(model, processes.mesh["data"])
    if processes.is_sharded:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for block in model.blocks:
            fully_shard(block, mesh=processes.mesh["data"])
        fully_shard(model, mesh=processes.mesh["data"])
        register_fsdp_forward_method(model, "hidden")


def _share_matrices(model: Decoder, mesh: DeviceMesh) -> None:
    """Megatron's layout (Shoeybi et al. 2019, arXiv:1909.08053): heads and feed-forward columns apart, their outputs summed.

    Embedding, norms and head are whole in each process.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size, config = mesh.size(), model.config
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ConfigError(f"{name}={getattr(config, name)} cannot be shared by parallel.tensor={size} processes")
    columns = ("attention.query_key_value", "attention.query", "attention.key", "attention.value", "mlp.up", "mlp.gate")
    for block in model.blocks:
        present = dict(block.named_modules())
        plan: dict[str, Any] = {name: ColwiseParallel() for name in columns if name in present}
        parallelize_module(block, mesh, plan | {"attention.output": RowwiseParallel(), "mlp.down": RowwiseParallel()})
        if isinstance(block, GPTNeoXBlock):
            block.attention.num_heads //= size  # its rows are [H, 3, K], so that a part of them is whole heads


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_whole_(target: Tensor, source: Tensor) -> None:
    """Set a tensor, laid out over the processes or not, to one that is whole in each of them."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None).to_local()
    local(target).copy_(source)


def is_shared(tensor: Tensor, mesh: DeviceMesh | None, dimension: str) -> bool:
    """Whether the processes along a dimension of the mesh hold different parts of a tensor."""
    names = tensor.device_mesh.mesh_dim_names if isinstance(tensor, DTensor) else None
    if mesh is None or not isinstance(tensor, DTensor) or names is None or dimension not in names:
        return False
    return bool(tensor.placements[names.index(dimension)].is_shard())
