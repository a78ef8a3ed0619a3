"""A model whose linear layers are packed, made from outside: no model file knows of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from tripod.models.architectures import Decoder
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.models.moe import Experts
from tripod.ops.attention import Attend
from tripod.ops.expert_mlp import Gating, gated
from tripod.ops.linear import PackedLinear, PackLinear
from tripod.ops.moe_routing import Routing, combine, dispatch

M = TypeVar("M", bound=nn.Module)


class PackedModule(nn.Module):
    """Stands where an `nn.Linear` stood. It has no parameters: what it holds is ready for use, not for training."""

    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x)


class PackedExperts(nn.Module):
    """Stands where `Experts` stood, each matrix of each expert packed."""

    def __init__(self, experts: Experts, pack_linear: PackLinear) -> None:
        super().__init__()
        self.gating: Gating = experts.gating
        self.up = [pack_linear(matrix, None) for matrix in experts.up]
        self.down = [pack_linear(matrix, None) for matrix in experts.down]
        self.num_bytes = sum(packed.num_bytes for packed in (*self.up, *self.down))

    def forward(self, x: Tensor, routing: Routing) -> Tensor:  # [N, D] -> [N, D]
        sent = dispatch(routing)
        outputs = x.new_empty(len(sent.tokens), x.shape[-1])
        rows = zip(torch.split(x[sent.tokens], sent.counts.tolist()), torch.split(outputs, sent.counts.tolist()), strict=True)
        for (own, output), up, down in zip(rows, self.up, self.down, strict=True):
            if len(own):
                output.copy_(down(gated(up(own), self.gating)))
        return combine(outputs, routing, sent)


class PackedModel:
    """A `LanguageModel` over the same tensors, with every linear layer and the output matrix packed."""

    def __init__(self, inner: LanguageModel, head: PackedLinear, num_bytes: int, *, dtype: torch.dtype) -> None:
        """
        Args:
            inner: without an output matrix of its own.
            head: the output matrix.
            num_bytes: of all packed layers.
            dtype: of the hidden states.
        """
        self.config: LanguageModelConfig = inner.config
        self.dtype = dtype
        self.num_bytes = num_bytes  # of packed layers
        self._inner = inner
        self._head = head

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def modules(self) -> Iterator[nn.Module]:
        """Those of the model that it is over, so that its routers can be watched."""
        return modules_of(self._inner)

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        return self._inner.hidden(token_ids, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self._head(hidden)


def modules_of(model: LanguageModel) -> Iterator[nn.Module]:
    """The modules of a model, plain or packed; none of one that does not tell."""
    return model.modules() if isinstance(model, nn.Module | PackedModel) else iter(())


def clone_sharing_tensors(model: M) -> M:
    """A model of modules of its own over the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@torch.inference_mode()
def pack(model: Decoder, pack_linear: PackLinear) -> PackedModel:
    """Pack every `nn.Linear` and expert of a model, and its output matrix, be it its own or the embedding. Routers stay as they are.

    The model itself stays as it is: the packed one shares its other tensors, so that the unpacked weights are freed with the last
    reference to the model.

    Args:
        model: loaded, not training.
        pack_linear: makes a packed linear of (weight, bias).
    """
    inner = clone_sharing_tensors(model)
    num_bytes = 0
    matrix = inner.embedding if inner.head is None else inner.head
    head = pack_linear(matrix.weight, None)
    inner.head = None
    num_bytes += head.num_bytes
    for module in list(inner.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                packed = pack_linear(child.weight, child.bias)
                num_bytes += packed.num_bytes
                setattr(module, name, PackedModule(packed))
            elif isinstance(child, Experts):
                experts = PackedExperts(child, pack_linear)
                num_bytes += experts.num_bytes
                setattr(module, name, experts)
    return PackedModel(inner, head, num_bytes, dtype=model.dtype)
