"""Blocks over the native kernels: the same arithmetic as the model files', with projections joined and what follows a product done in it.

They take ragged rows, [N, D], as the engine gives them. The stream between blocks is float32 whatever the weights are. Every operation
treats a row by itself, in one order, so a row has the same bits whatever its neighbours. A block is one call where keys and values lie in
the kernels' own pool, and some nine calls with the same bits where they do not.
"""

# N tokens, D hidden size, H query heads, G key/value heads, K head size

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tripod.errors import ConfigError
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXBlock
from tripod.models.llama import Llama, LlamaBlock, RMSNorm
from tripod.models.pack import PackedModel, clone_sharing_tensors
from tripod.models.packed_file import FreshPacker, Packer, keep, kept_path, open_kept
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu.fused_layer import Dense, FusedLayer, Norm, StepRows
from tripod.ops.kernels.cpu.linear import PackedWeight, gate_up, linear, linear_argmax, pack_gate_up, pack_linear
from tripod.ops.kernels.cpu.pool_attention import PoolAttention
from tripod.ops.kernels.cpu.rows import embedding, layer_norm, rms_norm, rotate
from tripod.ops.linear import INT4_GROUP
from tripod.ops.linear_formats import LinearActivation, LinearFormat

_log = logging.getLogger(__name__)

ACTIVATIONS: dict[str, LinearActivation] = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}


class NativeLinear:
    """A `PackedLinear` over the native kernels; what may follow the product is done in it."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, weight_format: LinearFormat, packer: Packer) -> None:
        """
        Args:
            weights: [N_i, K] each: one below the other they are the weight.
            bias: [N].
            weight_format: of the packed weight.
            packer: where it comes from.
        """
        shape = (sum(weight.shape[0] for weight in weights), weights[0].shape[1])
        group = INT4_GROUP if weight_format == "int4" else None

        def make() -> PackedWeight:
            return pack_linear(weights[0] if len(weights) == 1 else torch.cat(list(weights)), weight_format, group)

        self._packed = packer.take(shape, is_gate_up=False, make=make)
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


class _NativeGateUp:
    """silu(gate x) * up x in one pass over x, where neither has a bias."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, weight_format: LinearFormat, packer: Packer) -> None:
        group = INT4_GROUP if weight_format == "int4" else None
        shape = (gate.out_features, gate.in_features)
        self._packed = packer.take(shape, is_gate_up=True, make=lambda: pack_gate_up(gate.weight, up.weight, weight_format, group))

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    @property
    def dense(self) -> Dense:
        """The same as a part of a fused layer."""
        return Dense(self._packed)

    def __call__(self, x: Tensor) -> Tensor:
        return gate_up(x, self._packed)


class NativeGPTNeoXBlock(nn.Module):
    """`GPTNeoXBlock`."""

    def __init__(self, block: GPTNeoXBlock, hidden_act: str, weight_format: LinearFormat, packer: Packer) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.layer, self.num_heads, self.scale = attention.layer, attention.num_heads, attention.scale
        self.is_parallel = block.is_parallel
        self.attention_norm, self.mlp_norm = NativeNorm(block.attention_norm), NativeNorm(block.mlp_norm)
        self.query_key_value = _native(attention.query_key_value, weight_format, packer)
        self.output = _native(attention.output, weight_format, packer)
        self.up, self.down = _native(mlp.up, weight_format, packer), _native(mlp.down, weight_format, packer)
        self.joined_activation = ACTIVATIONS.get(hidden_act)
        self.activation = mlp.activation
        self.num_bytes = sum(part.num_bytes for part in (self.query_key_value, self.output, self.up, self.down))

    def fused(self) -> FusedLayer | None:
        """The block as one call; None where its activation cannot be joined to a product."""
        if self.joined_activation is None:
            return None
        return FusedLayer(
            attention_norm=self.attention_norm.norm,
            query_key_value=self.query_key_value.dense,
            is_interleaved=True,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=len(self.attention_norm.weight) // self.num_heads,
            scale=self.scale,
            output=self.output.dense,
            mlp_norm=self.mlp_norm.norm,
            up=self.up.dense,
            activation=self.joined_activation,
            down=self.down.dense,
            is_parallel=self.is_parallel,
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [N, D] -> [N, D]
        joined = self.query_key_value(self.attention_norm(x)).view(len(x), self.num_heads, 3, -1)
        query, key, value = joined.unbind(-2)  # each [N, H, K], with gaps
        seen = attend(self.layer, rotate(query, cos, sin, out=query), rotate(key, cos, sin, out=key), value, scale=self.scale)
        attended = self.output(seen.flatten(-2), residual=x)
        return self.down(self._activated(self.mlp_norm(x if self.is_parallel else attended)), residual=attended)

    def _activated(self, x: Tensor) -> Tensor:
        if self.joined_activation is not None:
            return self.up(x, self.joined_activation)
        return self.activation(self.up(x))


class NativeLlamaBlock(nn.Module):
    """`LlamaBlock`, with query, key and value made by one product, and gate and up by another."""

    def __init__(self, block: LlamaBlock, weight_format: LinearFormat, packer: Packer) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.layer, self.head_dim, self.scale, self.window = attention.layer, attention.head_dim, attention.scale, attention.window
        self.num_kv_heads = attention.key.out_features // attention.head_dim
        self.num_heads = attention.query.out_features // attention.head_dim
        self.attention_norm, self.mlp_norm = NativeNorm(block.attention_norm), NativeNorm(block.mlp_norm)
        self.query_norm = NativeNorm(attention.query_norm) if isinstance(attention.query_norm, RMSNorm) else None
        self.key_norm = NativeNorm(attention.key_norm) if isinstance(attention.key_norm, RMSNorm) else None
        projections = (attention.query, attention.key, attention.value)
        has_bias = attention.query.bias is not None
        self.query_key_value = NativeLinear(
            [projection.weight for projection in projections],
            torch.cat([projection.bias for projection in projections]) if has_bias else None,
            weight_format,
            packer,
        )
        self.output, self.down = _native(attention.output, weight_format, packer), _native(mlp.down, weight_format, packer)
        self.gate_up = None if mlp.gate.bias is not None else _NativeGateUp(mlp.gate, mlp.up, weight_format, packer)
        self.gate, self.up = (
            (None, None) if self.gate_up else (_native(mlp.gate, weight_format, packer), _native(mlp.up, weight_format, packer))
        )
        parts = (self.query_key_value, self.output, self.down, self.gate_up, self.gate, self.up)
        self.num_bytes = sum(part.num_bytes for part in parts if part is not None)

    def fused(self) -> FusedLayer | None:
        """The block as one call; None where gate and up have biases."""
        if self.gate_up is None:
            return None
        return FusedLayer(
            attention_norm=self.attention_norm.norm,
            query_key_value=self.query_key_value.dense,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.scale,
            window=self.window,
            query_norm=None if self.query_norm is None else self.query_norm.norm,
            key_norm=None if self.key_norm is None else self.key_norm.norm,
            output=self.output.dense,
            mlp_norm=self.mlp_norm.norm,
            up=self.gate_up.dense,
            down=self.down.dense,
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [N, D] -> [N, D]
        joined = self.query_key_value(self.attention_norm(x)).view(len(x), -1, self.head_dim)  # [N, H + 2 G, K]
        query, key, value = torch.split(joined, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=-2)
        if self.query_norm is None or self.key_norm is None:
            rotated = joined[:, : self.num_heads + self.num_kv_heads]
            rotate(rotated, cos, sin, out=rotated)
        else:
            query, key = self.query_norm(query.contiguous()), self.key_norm(key.contiguous())
            query, key = rotate(query, cos, sin, out=query), rotate(key, cos, sin, out=key)
        seen = attend(self.layer, query, key, value, scale=self.scale, window=self.window)
        x = self.output(seen.flatten(-2), residual=x)
        normed = self.mlp_norm(x)
        if self.gate_up is not None:
            return self.down(self.gate_up(normed), residual=x)
        assert self.gate is not None
        assert self.up is not None
        return self.down(self.gate(normed, "silu") * self.up(normed), residual=x)


class _WideEmbedding(nn.Module):
    """The rows of the embedding as float32, whatever it is kept in."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, token_ids: Tensor) -> Tensor:
        return embedding(token_ids, self.weight, torch.float32)


class NativeModel(PackedModel):
    """A `PackedModel` that takes one call a layer where the kernels hold the keys and values."""

    def __init__(self, inner: GPTNeoX | Llama, head: NativeLinear, num_bytes: int) -> None:
        super().__init__(inner, head, num_bytes, dtype=torch.float32)
        self._native_head = head
        self._embedding, self._rope, self._norm = inner.embedding, inner.rope, cast(NativeNorm, inner.norm)
        fused = [cast("NativeGPTNeoXBlock | NativeLlamaBlock", block).fused() for block in inner.blocks]
        layers = [layer for layer in fused if layer is not None]
        self._layers = layers if len(layers) == len(fused) else None

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        if self._layers is None or not isinstance(attend, PoolAttention):
            return super().hidden(token_ids, positions, attend)
        x = self._embedding(token_ids)  # [N, D], float32, changed in place from here on
        cos, sin = self._rope(positions)
        step = StepRows(cos, sin, attend.slots, attend.requests, attend.positions, attend.block_tables, attend.pool)
        for index, layer in enumerate(self._layers):
            layer(x, attend.pool, index, step)
        return self._norm.forward(x)

    def greedy(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely token of each row and its logit, [R] each: bit for bit those of `logits`, which are never written to memory."""
        return self._native_head.argmax(hidden)


@torch.inference_mode()
def pack_native(model: GPTNeoX | Llama, weight_format: LinearFormat, checkpoint: Path | None = None) -> NativeModel:
    """`tripod.models.pack.pack` for the native kernels: the blocks are replaced as wholes. The model itself stays as it is.

    Args:
        model: loaded, not training.
        weight_format: of all linear layers.
        checkpoint: the folder whose weights the model has, unchanged: then packed weights are taken from, or left in, the cache on disk.
    """
    path = None if checkpoint is None else kept_path(checkpoint, weight_format, model.dtype)
    if path is not None and (kept := open_kept(path, weight_format)) is not None:
        try:
            native = _pack(model, weight_format, kept)
            kept.check_end()
            return native
        except ValueError as error:
            _log.warning("packed weights in %s cannot be used: %s", path, error)
    fresh = FreshPacker()
    native = _pack(model, weight_format, fresh)
    if path is not None:
        keep(path, fresh.packed)
    return native


def _pack(model: GPTNeoX | Llama, weight_format: LinearFormat, packer: Packer) -> NativeModel:
    inner = clone_sharing_tensors(model)
    head = NativeLinear([(inner.embedding if inner.head is None else inner.head).weight], None, weight_format, packer)
    inner.head = None
    num_bytes = head.num_bytes
    for layer, block in enumerate(inner.blocks):
        if isinstance(inner, GPTNeoX):
            native: nn.Module = NativeGPTNeoXBlock(cast(GPTNeoXBlock, block), inner.config.hidden_act, weight_format, packer)
        else:
            native = NativeLlamaBlock(cast(LlamaBlock, block), weight_format, packer)
        inner.blocks[layer] = native
        num_bytes += cast(int, native.num_bytes)
    inner.embedding = _WideEmbedding(inner.embedding.weight)  # type: ignore[assignment]
    inner.norm = NativeNorm(inner.norm)  # type: ignore[assignment]
    return NativeModel(inner, head, num_bytes)


def _native(layer: nn.Linear, weight_format: LinearFormat, packer: Packer) -> NativeLinear:
    return NativeLinear([layer.weight], layer.bias, weight_format, packer)
