"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), and how a model is given one.

A model does not know where its keys and values are kept. It hands query, key and value of each layer to an `Attend`
that its caller passes in: whole sequences for training and reference, paged keys and values for serving.
"""

# B batch, T time, H query heads, G key/value heads, K head size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tripod.errors import ShapeError
from tripod.ops.shape import expect_shape


class Attend(Protocol):
    """Lets each query see the keys and values that it may see."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        """Attend in one layer.

        Args:
            layer: counts from 0; tells a cache where to read and write.
            query: [..., H, K], rotated.
            key: [..., G, K], rotated, of the same tokens; H is a multiple of G.
            value: [..., G, K], of the same tokens.
            scale: factor on the dot products, usually 1 / sqrt(K).
            window: how many tokens a query sees, itself included; None is all before it.

        Returns:
            [..., H, K], in the dtype of query.
        """
        ...


def causal_attention(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """The `Attend` of whole sequences: each token sees itself and the tokens before it, nothing is kept.

    Args:
        layer: not used.
        query: [B, T, H, K].
        key: [B, T, G, K]; query heads H/G * g up to H/G * (g + 1) share key/value head g (arXiv:2305.13245).
        value: [B, T, G, K].
        scale: factor on the dot products.
        window: how many tokens a query sees, itself included (Beltagy et al. 2020, arXiv:2004.05150); None is all.

    Returns:
        [B, T, H, K].

    Raises:
        ShapeError: the shapes do not fit each other.
    """
    _expect_grouped_heads(query, key, value)
    num_tokens = query.shape[1]
    mask = None
    if window is not None and window < num_tokens:
        position = torch.arange(num_tokens, device=query.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < window)  # [T, T], True where seen
    return scaled_dot_product_attention(  # on [B, heads, T, K]; a shared key/value head is read in place where the kernel can
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    ).transpose(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class DocumentAttention:
    """The `Attend` of rows that hold several documents: each token sees itself and what stands before it in its own document.

    starts: [B, T], int64: the column in which the document of each token begins.
    """

    starts: Tensor

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        """[B, T, H, K] for query [B, T, H, K], key and value [B, T, G, K]; see `causal_attention`."""
        _expect_grouped_heads(query, key, value)
        expect_shape("starts", self.starts, tuple(query.shape[:2]))
        position = torch.arange(query.shape[1], device=query.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (self.starts[:, :, None] <= position)  # [B, T, T], True where seen
        if window is not None:
            mask &= distance < window
        return scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask[:, None],
            scale=scale,
            enable_gqa=query.shape[2] != key.shape[2],
        ).transpose(1, 2)


def bidirectional_attention(lengths: Sequence[int]) -> Attend:
    """An `Attend` for encoders: texts lie one after the other, without padding, and each token sees all of its own text.

    Scores and values are multiplied in the dtype of the query, the softmax is in float32.

    Args:
        lengths: tokens of each text; their sum is N.

    Returns:
        An `Attend` for query [N, H, K], key and value [N, H, K], giving [N, H, K]. It raises ShapeError for other shapes,
        and for a window, which encoders do not have.
    """
    sizes, num_tokens = list(lengths), sum(lengths)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        expect_shape("query", query, (num_tokens, None, None))
        expect_shape("key", key, tuple(query.shape))
        expect_shape("value", value, tuple(query.shape))
        if window is not None:
            raise ShapeError(f"window={window} was given to bidirectional attention, in which every token sees its whole text")
        seen = torch.empty_like(query)
        texts = zip(*(torch.split(tensor, sizes) for tensor in (query * scale, key, value, seen)), strict=True)
        # Text by text: the scores of one text stay in the processor's cache, and no arithmetic is spent on padding.
        for text_query, text_key, text_value, text_seen in texts:
            scores = torch.bmm(text_query.transpose(0, 1), text_key.permute(1, 2, 0))  # [H, T, T]
            weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
            text_seen.copy_(torch.bmm(weights, text_value.transpose(0, 1)).transpose(0, 1))
        return seen

    return attend


def _expect_grouped_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.ndim != 4:
        raise ShapeError(f"query has shape {list(query.shape)}; expected [B, T, H, K]")
    batch, num_tokens, num_heads, head_dim = query.shape
    expect_shape("key", key, (batch, num_tokens, None, head_dim))
    expect_shape("value", value, tuple(key.shape))
    if num_heads % key.shape[2]:
        raise ShapeError(f"key has {key.shape[2]} heads, which does not divide the {num_heads} heads of query")
