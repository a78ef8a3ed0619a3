"""Attention against its definition, written as loops over tokens in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tripod.errors import ShapeError
from tripod.ops.attention import bidirectional_attention, causal_attention


def defined(query: Tensor, key: Tensor, value: Tensor, *, scale: float, first: int, last: int, at: int) -> Tensor:
    """What token `at` of one sequence takes from tokens first..last: [H, K] float64, head by head."""
    heads = []
    for head in range(query.shape[1]):
        shared = head * key.shape[1] // query.shape[1]
        scores = [scale * float(query[at, head].double() @ key[other, shared].double()) for other in range(first, last + 1)]
        weights = [math.exp(score - max(scores)) for score in scores]
        heads.append(sum(w / sum(weights) * value[first + i, shared].double() for i, w in enumerate(weights)))
    return torch.stack(heads)


def tensors(*shape: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    *leading, _, size = shape
    return (
        torch.randn(shape, generator=generator),
        torch.randn(*leading, groups, size, generator=generator),
        torch.randn(*leading, groups, size, generator=generator),
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_causal_attention_is_its_definition(groups: int, window: int | None) -> None:
    query, key, value = tensors(2, 7, 4, 8, groups=groups)
    seen = causal_attention(0, query, key, value, scale=0.3, window=window)
    for batch in range(2):
        for at in range(7):
            first = 0 if window is None else max(0, at - window + 1)
            expected = defined(query[batch], key[batch], value[batch], scale=0.3, first=first, last=at, at=at)
            torch.testing.assert_close(seen[batch, at].double(), expected, atol=1e-6, rtol=1e-5)


def test_bidirectional_attention_is_its_definition_text_by_text() -> None:
    lengths = [3, 1, 6]
    query, key, value = tensors(10, 4, 8, groups=4)
    seen = bidirectional_attention(lengths)(0, query, key, value, scale=0.3)
    start = 0
    for length in lengths:
        for at in range(start, start + length):
            expected = defined(query, key, value, scale=0.3, first=start, last=start + length - 1, at=at)
            torch.testing.assert_close(seen[at].double(), expected, atol=1e-6, rtol=1e-5)
        start += length


def test_what_does_not_fit_is_refused() -> None:
    query, key, value = tensors(2, 7, 4, 8, groups=2)
    with pytest.raises(ShapeError, match=r"query has shape \[7, 4, 8\]; expected \[B, T, H, K\]"):
        causal_attention(0, query[0], key, value, scale=1.0)
    with pytest.raises(ShapeError, match="value has shape"):
        causal_attention(0, query, key, value[:, :6], scale=1.0)
    with pytest.raises(ShapeError, match="3 heads, which does not divide the 4"):
        causal_attention(0, query, *tensors(2, 7, 3, 8, groups=3)[1:], scale=1.0)
    with pytest.raises(ShapeError, match=r"query has shape \[7, 4, 8\]; expected \[6, \*, \*\]"):
        bidirectional_attention([2, 4])(0, query[0], query[0], query[0], scale=1.0)
    with pytest.raises(ShapeError, match="window=4"):
        bidirectional_attention([7])(0, query[0], query[0], query[0], scale=1.0, window=4)
