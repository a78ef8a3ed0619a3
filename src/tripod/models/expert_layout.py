"""How checkpoints store experts, which our models hold in two tensors a layer: one file entry a matrix, or all of a kind in one."""

# E experts, D hidden size, F size of an expert

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tripod.errors import CheckpointError
from tripod.models.names import TensorLayout


@dataclass(frozen=True, slots=True)
class SplitLayout(TensorLayout):
    """Three matrices an expert, each under its own name: `...experts.7.gate_proj.weight`, and so on.

    Gathered, a layer has `...mlp.experts.gate_up_proj` [E, 2 F, D] and `...mlp.experts.down_proj` [E, D, F], as transformers holds them.
    """

    mlp: str = "mlp"  # what the sparse layer is called on disk
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    _pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        kinds = "|".join((self.gate, self.up, self.down))
        pattern = re.compile(rf"(model\.layers\.\d+\.){self.mlp}\.experts\.(\d+)\.({kinds})\.weight")
        object.__setattr__(self, "_pattern", pattern)

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, dict[int, dict[str, Tensor]]] = {}  # layer's prefix -> expert -> kind -> matrix
        gathered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if match := self._pattern.fullmatch(name):
                found.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
            else:
                gathered[re.sub(rf"(?<=\.){self.mlp}(?=\.)", "mlp", name, count=1)] = tensor
        for prefix, experts in found.items():
            absent = [
                f"{prefix}{self.mlp}.experts.{expert}.{kind}.weight"
                for expert in range(max(experts) + 1)
                for kind in (self.gate, self.up, self.down)
                if kind not in experts.get(expert, {})
            ]
            if absent:
                more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
                raise CheckpointError(f"the checkpoint lacks matrices of its experts: {', '.join(absent[:6])}{more}")
            in_order = [experts[expert] for expert in range(len(experts))]
            try:
                gate_up = torch.stack([torch.cat((matrices[self.gate], matrices[self.up])) for matrices in in_order])
                down = torch.stack([matrices[self.down] for matrices in in_order])
            except RuntimeError as error:
                raise CheckpointError(f"the experts of {prefix}{self.mlp} differ in shape: {error}") from error
            gathered[f"{prefix}mlp.experts.gate_up_proj"], gathered[f"{prefix}mlp.experts.down_proj"] = gate_up, down
        return gathered

    def scatter(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scattered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            prefix, mlp, rest = name.partition(".mlp.")
            at = f"{prefix}.{self.mlp}." if mlp else prefix
            if rest == "experts.gate_up_proj":
                for expert, matrix in enumerate(tensor):
                    gate, up = matrix.chunk(2)
                    scattered[f"{at}experts.{expert}.{self.gate}.weight"] = gate
                    scattered[f"{at}experts.{expert}.{self.up}.weight"] = up
            elif rest == "experts.down_proj":
                for expert, matrix in enumerate(tensor):
                    scattered[f"{at}experts.{expert}.{self.down}.weight"] = matrix
            else:
                scattered[f"{at}{rest}"] = tensor
        return scattered


SPLIT_LAYOUT = SplitLayout()
MIXTRAL_LAYOUT = SplitLayout(mlp="block_sparse_moe", gate="w1", up="w3", down="w2")


@dataclass(frozen=True, slots=True)
class OpenMoELayout(TensorLayout):
    """All experts of a layer in three tensors, inputs before outputs: `wi_gate` [E, D, 2 F], `wi_up` [E, D, F] and `wo` [E, F, D].

    Gathered, the first two are `wi` [E, 3 F, D], and `wo` is [E, D, F].
    """

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gathered = dict(tensors)
        for name in tensors:
            if name.endswith(".experts.wo"):
                gathered[name] = tensors[name].transpose(1, 2).contiguous()
            elif name.endswith(".experts.wi_gate"):
                up = name.removesuffix("gate") + "up"
                if up not in tensors:
                    raise CheckpointError(f"the checkpoint lacks matrices of its experts: {up}")
                gathered[name.removesuffix("_gate")] = (
                    torch.cat((gathered.pop(name), gathered.pop(up)), dim=-1).transpose(1, 2).contiguous()
                )
        return gathered

    def scatter(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scattered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if name.endswith(".experts.wo"):
                scattered[name] = tensor.transpose(1, 2)
            elif name.endswith(".experts.wi"):
                size = tensor.shape[1] // 3
                scattered[f"{name}_gate"], scattered[f"{name}_up"] = torch.split(tensor.transpose(1, 2), [2 * size, size], dim=-1)
            else:
                scattered[name] = tensor
        return scattered
