"""Blocks over the native kernels: the same arithmetic as the model files', with projections joined and what follows a product done in it.

They take ragged rows, [N, D], as the engine gives them. The stream between blocks is float32 whatever the weights are. Every operation
treats a row by itself, in one order, so a row has the same bits whatever its neighbours. A block is one call where keys and values lie in
the kernels' own pool, or all blocks are, and some nine calls with the same bits where they do not.
"""

# N tokens, D hidden size, H query heads, G key/value heads, K head size

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from tripod.models.architectures import Decoder
from tripod.models.expert_cache import ExpertCache
from tripod.models.gpt_neox import GPTNeoX, GPTNeoXBlock
from tripod.models.llama import LlamaBlock, LlamaMLP
from tripod.models.native_attention import NativeLlamaAttention
from tripod.models.native_parts import ACTIVATIONS, NativeGateUp, NativeLinear, NativeNorm, native
from tripod.models.native_sparse import NativeSparseBlock, UnlessWatched
from tripod.models.openmoe import OpenMoEBlock
from tripod.models.pack import PackedModel, clone_sharing_tensors
from tripod.models.packed_file import FreshPacker, Packer, keep, kept_path, open_kept
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu.fused_layer import FusedLayer, FusedLayers, StepRows
from tripod.ops.kernels.cpu.pool_attention import PoolAttention
from tripod.ops.kernels.cpu.rows import embedding, rotate
from tripod.ops.linear import WeightFormat

# A step of more rows takes its time in the kernels however they are called, and between its layers others have a turn: an encoder, or
# another engine.
_FEW_ROWS = 64

_log = logging.getLogger(__name__)


class NativeGPTNeoXBlock(nn.Module):
    """`GPTNeoXBlock`."""

    def __init__(self, block: GPTNeoXBlock, hidden_act: str, weight_format: WeightFormat, packer: Packer) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.layer, self.num_heads, self.scale = attention.layer, attention.num_heads, attention.scale
        self.is_parallel = block.is_parallel
        self.attention_norm, self.mlp_norm = NativeNorm(block.attention_norm), NativeNorm(block.mlp_norm)
        self.query_key_value = native(attention.query_key_value, weight_format, packer)
        self.output = native(attention.output, weight_format, packer)
        self.up, self.down = native(mlp.up, weight_format, packer), native(mlp.down, weight_format, packer)
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

    def __init__(self, block: LlamaBlock, weight_format: WeightFormat, packer: Packer) -> None:
        super().__init__()
        mlp = cast(LlamaMLP, block.mlp)
        self.attention = NativeLlamaAttention(block.attention_norm, block.attention, weight_format, packer)
        self.mlp_norm = NativeNorm(block.mlp_norm)
        self.down = native(mlp.down, weight_format, packer)
        self.gate_up = None if mlp.gate.bias is not None else NativeGateUp(mlp.gate.weight, mlp.up.weight, weight_format, packer)
        self.gate, self.up = (
            (None, None) if self.gate_up else (native(mlp.gate, weight_format, packer), native(mlp.up, weight_format, packer))
        )
        parts = (self.attention, self.down, self.gate_up, self.gate, self.up)
        self.num_bytes = sum(part.num_bytes for part in parts if part is not None)

    def fused(self) -> FusedLayer | None:
        """The block as one call; None where gate and up have biases, or the attention is no one call."""
        if self.gate_up is None or not self.attention.is_fusible:
            return None
        return FusedLayer(**self.attention.parts(), mlp_norm=self.mlp_norm.norm, up=self.gate_up.dense, down=self.down.dense)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [N, D] -> [N, D]
        x = self.attention(x, cos, sin, attend)
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
    """A `PackedModel` that takes one call a step, one a layer, or a few in some sparse ones, where the kernels hold the keys and values."""

    def __init__(self, inner: Decoder, head: NativeLinear, num_bytes: int) -> None:
        super().__init__(inner, head, num_bytes, dtype=torch.float32)
        self._native_head = head
        self._embedding, self._rope, self._norm = inner.embedding, inner.rope, cast(NativeNorm, inner.norm)
        fused = [cast("NativeBlock", block).fused() for block in inner.blocks]
        layers = [layer for layer in fused if layer is not None]
        self._layers = layers if len(layers) == len(fused) else None
        whole = [layer.whole if isinstance(layer, UnlessWatched) else layer for layer in layers]
        plain = [layer for layer in whole if isinstance(layer, FusedLayer)]
        self._together = FusedLayers(plain, norm=self._norm.norm) if plain and len(plain) == len(fused) else None
        self._routers = [layer.router for layer in layers if isinstance(layer, UnlessWatched)]

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend, rows: Sequence[int] | None = None) -> Tensor:
        """As `LanguageModel.hidden`, of the given rows alone (ascending; None: all); the last layer does not compute the others."""
        if self._layers is None or not isinstance(attend, PoolAttention):
            hidden = super().hidden(token_ids, positions, attend)
            return hidden if rows is None else hidden[rows]
        x: Tensor = self._embedding(token_ids)  # [N, D], float32, changed in place from here on
        cos, sin = self._rope.tables(x.device)
        step = StepRows(cos, sin, attend.slots, attend.requests, attend.positions, attend.block_tables, attend.pool, kept=rows)
        if self._together is not None and len(x) <= _FEW_ROWS and not any(router.is_watched for router in self._routers):
            self._together(x, attend.pool, step)
            return x[: step.num_kept]
        for index, layer in enumerate(self._layers):
            layer(x, attend.pool, index, step, is_last=index == len(self._layers) - 1)
        return self._norm.forward(x[: step.num_kept])

    def greedy(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely token of each row and its logit, [R] each: bit for bit those of `logits`, which are never written to memory."""
        return self._native_head.argmax(hidden)


@torch.inference_mode()
def pack_native(
    model: Decoder, weight_format: WeightFormat, checkpoint: Path | None = None, cache: ExpertCache | None = None
) -> NativeModel:
    """`tripod.models.pack.pack` for the native kernels: the blocks are replaced as wholes. The model itself stays as it is.

    Args:
        model: loaded, not training.
        weight_format: of all linear layers.
        checkpoint: the folder whose weights the model has, unchanged: then packed weights are taken from, or left in, the cache on disk.
        cache: of experts; None: all of them are used where they lie.
    """
    path = None if checkpoint is None else kept_path(checkpoint, weight_format, model.dtype)
    if path is not None and (kept := open_kept(path, weight_format)) is not None:
        try:
            native = _pack(model, weight_format, kept, cache)
            kept.check_end()
            return native
        except ValueError as error:
            _log.warning("packed weights in %s cannot be used: %s", path, error)
    fresh = FreshPacker()
    native = _pack(model, weight_format, fresh, cache)
    if path is not None:
        keep(path, fresh.packed)
        if cache is not None and (kept := open_kept(path, weight_format)) is not None:
            return _pack(model, weight_format, kept, cache)  # over the file: what was packed now need not stay in memory
    return native


def _pack(model: Decoder, weight_format: WeightFormat, packer: Packer, cache: ExpertCache | None) -> NativeModel:
    inner = clone_sharing_tensors(model)
    head = NativeLinear([(inner.embedding if inner.head is None else inner.head).weight], None, weight_format, packer)
    inner.head = None
    num_bytes = head.num_bytes
    for layer, block in enumerate(inner.blocks):
        packed = _pack_block(cast("GPTNeoXBlock | LlamaBlock | OpenMoEBlock", block), inner, weight_format, packer, cache)
        inner.blocks[layer] = packed
        num_bytes += packed.num_bytes
    inner.embedding = _WideEmbedding(inner.embedding.weight)  # type: ignore[assignment]
    inner.norm = NativeNorm(inner.norm)  # type: ignore[assignment]
    return NativeModel(inner, head, num_bytes)


NativeBlock: TypeAlias = NativeGPTNeoXBlock | NativeLlamaBlock | NativeSparseBlock


def _pack_block(
    block: GPTNeoXBlock | LlamaBlock | OpenMoEBlock, model: Decoder, weight_format: WeightFormat, packer: Packer, cache: ExpertCache | None
) -> NativeBlock:
    if isinstance(block, GPTNeoXBlock):
        assert isinstance(model, GPTNeoX)
        return NativeGPTNeoXBlock(block, model.config.hidden_act, weight_format, packer)
    if isinstance(block, LlamaBlock) and isinstance(block.mlp, LlamaMLP):
        return NativeLlamaBlock(block, weight_format, packer)
    return NativeSparseBlock(block, weight_format, packer, cache)
