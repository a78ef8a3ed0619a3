"""The first half of a Llama's block over the native kernels: x + Attention(norm x)."""

# N tokens, D hidden size, H query heads, G key/value heads, K head size

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tripod.models.llama import LlamaAttention, RMSNorm
from tripod.models.native_parts import NativeLinear, NativeNorm, native
from tripod.models.packed_file import Packer
from tripod.ops.attention import Attend
from tripod.ops.kernels.cpu.rows import rotate
from tripod.ops.linear import WeightFormat


class NativeLlamaAttention(nn.Module):
    """`LlamaAttention` behind its norm, with query, key and value made by one product."""

    def __init__(self, norm: RMSNorm, attention: LlamaAttention, weight_format: WeightFormat, packer: Packer) -> None:
        super().__init__()
        self.layer, self.head_dim, self.scale, self.window = attention.layer, attention.head_dim, attention.scale, attention.window
        self.num_kv_heads = attention.key.out_features // attention.head_dim
        self.num_heads = attention.query.out_features // attention.head_dim
        self.is_norm_joint, self.clip = attention.is_norm_joint, attention.clip
        self.norm = NativeNorm(norm)
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
        self.output = native(attention.output, weight_format, packer)
        self.num_bytes = self.query_key_value.num_bytes + self.output.num_bytes

    @property
    def is_fusible(self) -> bool:
        """Whether it can be a part of a `FusedLayer`, which has no norm over all heads and no clipping."""
        return not self.is_norm_joint and self.clip is None

    def parts(self) -> dict[str, Any]:
        """What a `FusedLayer` wants to know of it."""
        return {
            "attention_norm": self.norm.norm,
            "query_key_value": self.query_key_value.dense,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "scale": self.scale,
            "window": self.window,
            "query_norm": None if self.query_norm is None else self.query_norm.norm,
            "key_norm": None if self.key_norm is None else self.key_norm.norm,
            "output": self.output.dense,
        }

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:  # [N, D] -> [N, D]
        joined = self.query_key_value(self.norm(x))  # [N, (H + 2 G) K]
        query, key, value = (part.view(len(x), -1, self.head_dim) for part in self._split(joined))
        if self.query_norm is None or self.key_norm is None:
            rotated = joined.view(len(x), -1, self.head_dim)[:, : self.num_heads + self.num_kv_heads]
            rotate(rotated, cos, sin, out=rotated)
        else:
            if not self.is_norm_joint:
                query, key = self.query_norm(query.contiguous()), self.key_norm(key.contiguous())
            query, key = rotate(query, cos, sin, out=query), rotate(key, cos, sin, out=key)
        seen = attend(self.layer, query, key, value, scale=self.scale, window=self.window)
        return self.output(seen.flatten(-2), residual=x)

    def _split(self, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [N, H K], key and value [N, G K]; normed over all heads and clipped, where it is so."""
        sizes = [heads * self.head_dim for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        query, key, value = torch.split(joined, sizes, dim=-1)
        if self.is_norm_joint:
            assert self.query_norm is not None
            assert self.key_norm is not None
            query, key = self.query_norm(query.contiguous()), self.key_norm(key.contiguous())
        if self.clip is not None:
            query, key, value = (part.clamp(-self.clip, self.clip) for part in (query, key, value))
        return query, key, value
