"""BERT over the native kernels: the arithmetic of `models/bert.py`, with query, key and value made by one product.

Every operation treats a row by itself, so a text's states have the same bits whatever texts stand beside it.
"""

# N tokens of all texts, D hidden size, F feed-forward size, H heads, K head size

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tripod.models.bert import Bert, BertBlock, BertConfig
from tripod.models.native_parts import ACTIVATIONS, NativeLinear
from tripod.models.packed_file import FreshPacker
from tripod.ops.kernels.cpu import library
from tripod.ops.kernels.cpu.paged_attention import BLOCK_SIZE, why_no_pool
from tripod.ops.kernels.cpu.pool_attention import TextAttention
from tripod.ops.kernels.cpu.rows import embedding, layer_norm
from tripod.ops.linear_formats import LinearFormat

_FORMATS: dict[torch.dtype, LinearFormat] = {torch.float32: "f32", torch.bfloat16: "bf16"}


def why_not_native(model: Bert) -> str | None:
    """Why the kernels cannot run this model here; None where they can."""
    config = model.config
    if model.dtype not in _FORMATS:
        return f"the kernels have no linear layer in {model.dtype}"
    if model.device.type != "cpu":
        return f"the model is on {model.device}"
    if config.hidden_act not in ACTIVATIONS:
        return f"the kernels have no {config.hidden_act}"
    heads = {"num_heads": config.num_heads, "num_kv_heads": config.num_heads, "head_dim": config.head_dim}
    return library.why_not() or why_no_pool(block_size=BLOCK_SIZE, dtype=model.dtype, **heads)


class NativeBert:
    """A `Bert` for inference. It shares the tables of the model it was made from, and none of its matrices."""

    @torch.inference_mode()
    def __init__(self, model: Bert) -> None:
        """
        Args:
            model: loaded, one that `why_not_native` has nothing against.
        """
        table = model.embedding
        self.config: BertConfig = model.config
        self.dtype = model.dtype
        self._tokens = table.token.weight.detach()
        self._places = (table.position.weight + table.token_type.weight[0]).float().contiguous()  # of texts that are all of the first type
        self._token_types = (table.token_type.weight - table.token_type.weight[0]).float().contiguous()
        self._norm = _NativeLayerNorm(table.norm)
        self._blocks = [_NativeBertBlock(cast(BertBlock, block), model.config, model.dtype) for block in model.blocks]

    def hidden(self, token_ids: Tensor, positions: Tensor, lengths: Sequence[int], *, token_types: Tensor | None = None) -> Tensor:
        """The state of each token after the last block.

        Args:
            token_ids: [N], int64: texts one after the other.
            positions: [N], int64: the place of each token in its own text, from 0, below max_positions.
            lengths: tokens of each text; their sum is N.
            token_types: [N], int64: which of two texts a token belongs to; None is the first, for all.

        Returns:
            [N, D] float32.
        """
        attend = TextAttention(lengths, num_heads=self.config.num_heads, head_dim=self.config.head_dim, dtype=self.dtype)
        x = embedding(token_ids, self._tokens, torch.float32)
        if token_types is not None:
            x += embedding(token_types, self._token_types, torch.float32)
        x = self._norm(x, add=embedding(positions, self._places, torch.float32))
        for block in self._blocks:
            x = block(x, attend)
        return x


class _NativeLayerNorm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self._weight, self._bias, self._eps = norm.weight.detach().float(), norm.bias.detach().float(), norm.eps

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:  # [N, D] -> [N, D]
        return layer_norm(x, self._weight, self._bias, self._eps, add=add)


class _NativeBertBlock:
    """`BertBlock`. What lies between two products is in the dtype of the weights, in which it would be multiplied anyway."""

    def __init__(self, block: BertBlock, config: BertConfig, dtype: torch.dtype) -> None:
        attention, mlp = block.attention, block.mlp
        self._num_heads, self._head_dim, self._scale = config.num_heads, config.head_dim, attention.scale
        self._activation = ACTIVATIONS[config.hidden_act]
        projections = (attention.query, attention.key, attention.value)
        self._query_key_value = _pack([layer.weight for layer in projections], torch.cat([layer.bias for layer in projections]), dtype)
        self._output = _pack([attention.output.weight], attention.output.bias, dtype)
        self._up, self._down = _pack([mlp.up.weight], mlp.up.bias, dtype), _pack([mlp.down.weight], mlp.down.bias, dtype)
        self._attention_norm, self._mlp_norm = _NativeLayerNorm(block.attention_norm), _NativeLayerNorm(block.mlp_norm)
        self._dtype = dtype

    def __call__(self, x: Tensor, attend: TextAttention) -> Tensor:  # [N, D] -> [N, D], x is changed
        joined = self._query_key_value(x, dtype=self._dtype).view(len(x), 3, self._num_heads, self._head_dim)
        query, key, value = joined.unbind(1)
        seen = attend(0, query, key, value, scale=self._scale).flatten(-2)
        x = self._attention_norm(self._output(seen, residual=x, dtype=x.dtype))
        up = self._up(x, self._activation, dtype=self._dtype)
        return self._mlp_norm(self._down(up, residual=x, dtype=x.dtype))


def _pack(weights: Sequence[Tensor], bias: Tensor, dtype: torch.dtype) -> NativeLinear:
    return NativeLinear(weights, bias, _FORMATS[dtype], FreshPacker())
