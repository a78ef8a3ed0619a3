"""Linear layers and norms over the native kernels, out of which native blocks are made."""

# N outputs, K inputs, D hidden size; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tripod.errors import ConfigError
from tripod.models.llama import RMSNorm
from tripod.models.packed_file import Packer
from tripod.ops.kernels.cpu.fused_layer import Dense, Norm
from tripod.ops.kernels.cpu.linear import PackedWeight, gate_up, linear, linear_argmax, pack_gate_up, pack_linear
from tripod.ops.kernels.cpu.rows import layer_norm, rms_norm
from tripod.ops.linear import WeightFormat, parts_of
from tripod.ops.linear_formats import LinearActivation

ACTIVATIONS: dict[str, LinearActivation] = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}


def take_linear(weights: Sequence[Tensor], weight_format: WeightFormat, packer: Packer) -> PackedWeight:
    """Matrices of [N_i, K], one below the other, packed now or kept from before."""
    shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])

    def make() -> PackedWeight:
        return pack_linear(weights[0] if len(weights) == 1 else torch.cat(list(weights)), *parts_of(weight_format))

    return packer.take(shape, is_gate_up=False, make=make)


def take_gate_up(gate: Tensor, up: Tensor, weight_format: WeightFormat, packer: Packer) -> PackedWeight:
    """Two matrices of [N, K] for silu(gate x) * up x, packed now or kept from before."""
    shape = (gate.shape[0], gate.shape[1])
    return packer.take(shape, is_gate_up=True, make=lambda: pack_gate_up(gate, up, *parts_of(weight_format)))


class NativeLinear:
    """A `PackedLinear` over the native kernels; what may follow the product is done in it."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, weight_format: WeightFormat, packer: Packer) -> None:
        """
        Args:
            weights: [N_i, K] each: one below the other they are the weight.
            bias: [N].
            weight_format: of the packed weight.
            packer: where it comes from.
        """
        self._packed = take_linear(weights, weight_format, packer)
        self._bias = None if bias is None else bias.detach().float().contiguous()

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    @property
    def dense(self) -> Dense:
        """The same as a part of a fused layer."""
        return Dense(self._packed, self._bias)

    def __call__(
        self, x: Tensor, activation: LinearActivation | None = None, residual: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """activation(x W^T + bias) + residual: [..., K] -> [..., N], in `dtype`, or that of x."""
        out = None if dtype is None else torch.empty((*x.shape[:-1], self._packed.shape[0]), dtype=dtype)
        return linear(x.contiguous(), self._packed, self._bias, activation, residual, out=out)

    def add_to(self, stream: Tensor, x: Tensor) -> None:
        """stream += x W^T + bias, in place: [N, D] for x [N, K]."""
        linear(x, self._packed, self._bias, None, stream, out=stream)

    def argmax(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The place of the largest of each row of x W^T, the first of equals, and the number itself: [R, K] -> [R], [R]."""
        if self._bias is not None:
            raise ConfigError("the largest is looked for in a product without a bias")
        return linear_argmax(x.contiguous(), self._packed)


class NativeNorm(nn.Module):
    """A LayerNorm or an RMSNorm, of rows or of the heads of a row."""

    def __init__(self, norm: nn.LayerNorm | RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight.detach().float().contiguous()
        self.has_mean = isinstance(norm, nn.LayerNorm)  # to subtract
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.eps = norm.eps

    @property
    def norm(self) -> Norm:
        """The same as a part of a fused layer."""
        return Norm(self.weight, self.bias, self.eps, is_rms=not self.has_mean)

    def forward(self, x: Tensor) -> Tensor:  # [..., D] -> [..., D]
        return layer_norm(x, self.weight, self.bias, self.eps) if self.has_mean else rms_norm(x, self.weight, self.eps)


class NativeGateUp:
    """silu(gate x) * up x in one pass over x, where neither has a bias."""

    def __init__(self, gate: Tensor, up: Tensor, weight_format: WeightFormat, packer: Packer) -> None:
        self._packed = take_gate_up(gate, up, weight_format, packer)

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    @property
    def dense(self) -> Dense:
        """The same as a part of a fused layer."""
        return Dense(self._packed)

    def __call__(self, x: Tensor) -> Tensor:
        return gate_up(x, self._packed)


def native(layer: nn.Linear, weight_format: WeightFormat, packer: Packer) -> NativeLinear:
    return NativeLinear([layer.weight], layer.bias, weight_format, packer)
