"""A model whose linear layers are packed, made from outside: no model file knows of it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from tripod.models.architectures import Decoder
from tripod.models.language_model import LanguageModel, LanguageModelConfig
from tripod.ops.attention import Attend
from tripod.ops.linear import PackedLinear, PackLinear

M = TypeVar("M", bound=nn.Module)


class PackedModule(nn.Module):
    """Stands where an `nn.Linear` stood. It has no parameters: what it holds is ready for use, not for training."""

    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x)


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

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        return self._inner.hidden(token_ids, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self._head(hidden)


def clone_sharing_tensors(model: M) -> M:
    """A model of modules of its own over the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@torch.inference_mode()
def pack(model: Decoder, pack_linear: PackLinear) -> PackedModel:
    """Pack every `nn.Linear` of a model, and its output matrix, be it its own or the embedding.

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
    return PackedModel(inner, head, num_bytes, dtype=model.dtype)
