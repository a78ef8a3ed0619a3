"""Linear layers in four formats: what a format does to weights and activations, in plain torch.

    format  weights                                       activations                      bits a weight
    f32     float32                                       float32                          32
    bf16    bfloat16                                      bfloat16                         16
    int8    whole numbers of -127..127,                   whole numbers of -127..127,      8
            a float32 scale for each row                  a scale for each token
    int4    whole numbers of -8..7, a bfloat16 scale      whole numbers of -127..127,      4.5, 4.25, 4.125
            for 32, 64 or 128 inputs of a row (a group)   a scale for each token and group

Sums are exact for the whole numbers and in float32 or better otherwise. Rounding is to nearest, ties to even. The fast twins of these
functions, with the same names, are in `tripod.ops.kernels.cpu`.
"""

# N output features, K input features, G groups of a row

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tripod.errors import ConfigError
from tripod.ops.shape import expect_shape

LinearFormat = Literal["f32", "bf16", "int8", "int4"]
LinearActivation = Literal["gelu_erf", "gelu_tanh", "silu"]
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class FormattedWeight:
    """The weight of a linear layer after rounding to a format."""

    values: Tensor  # [N, K]: float32, bfloat16, or int8 that holds the whole numbers
    scales: Tensor | None  # int8: [N] float32; int4: [N, G] bfloat16, G = ceil(K / group)
    format: LinearFormat
    group: int | None  # int4: inputs under one scale

    def dense(self) -> Tensor:
        """[N, K], float32: the numbers that the format stands for."""
        if self.scales is None:
            return self.values.float()
        if self.group is None:
            return self.values.float() * self.scales[:, None]
        return self.values.float() * self.scales.float().repeat_interleave(self.group, dim=1)[:, : self.values.shape[1]]


def check_format(format: str, group: int | None) -> LinearFormat:
    """The format, known to exist and to have a group exactly where it needs one.

    Raises:
        ConfigError: it is none of the four, or the group does not fit it.
    """
    match format:
        case "int4":
            if group not in GROUP_SIZES:
                raise ConfigError(f"format='int4' has group={group}; give the number of inputs under one scale: one of {GROUP_SIZES}")
        case "f32" | "bf16" | "int8":
            if group is not None:
                raise ConfigError(f"format='{format}' has one scale a row or none, so group={group} has no meaning; leave it out")
        case _:
            raise ConfigError(f"format='{format}' is unknown; use one of {', '.join(get_args(LinearFormat))}")
    return format


def format_weight(weight: Tensor, format: str, group: int | None = None) -> FormattedWeight:
    """Round a weight to a format, to nearest.

    In int4 the value of largest magnitude in a group becomes -8 exactly (so a scale may be negative); it makes the step an eighth smaller
    than a symmetric -7..7, and of the values of the other sign only those above 15/16 of the largest are cut.

    Args:
        weight: [N, K], floating point.
        format: "f32", "bf16", "int8" or "int4".
        group: for int4, 32, 64 or 128.

    Raises:
        ConfigError: an unknown format, or a group that does not fit it.
        ShapeError: weight is not a matrix.
    """
    known = check_format(format, group)
    expect_shape("weight", weight, (weight.shape[0], weight.shape[-1]))
    weight = weight.detach()
    match known:
        case "f32":
            return FormattedWeight(weight.float(), None, known, None)
        case "bf16":
            return FormattedWeight(weight.bfloat16(), None, known, None)
        case "int8":
            values, scales = quantize(weight.float())
            return FormattedWeight(values, scales, known, None)
        case "int4":
            assert group is not None
            grouped = in_groups(weight.float(), group)  # [N, G, group]
            extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
            scales = (extreme / -8).bfloat16()
            steps = torch.where(scales == 0, torch.inf, scales.float())  # a group of zeros: everything divides to zero
            values = (grouped / steps[..., None]).round().clamp(-8, 7).to(torch.int8)
            return FormattedWeight(values.flatten(1)[:, : weight.shape[1]].contiguous(), scales, known, group)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of -127..127 and a scale for each row: x is about values times scale.

    Args:
        x: [..., D], float32.

    Returns:
        int8 [..., D] and float32 [...].
    """
    largest = x.abs().amax(-1)
    most = torch.full_like(largest, 127)  # a number divided by a tensor would be rounded twice
    factor = torch.where(largest > 0, most / largest, 0.0)
    return (x * factor[..., None]).round().to(torch.int8), largest / most


def in_groups(x: Tensor, group: int) -> Tensor:
    """[..., D] as [..., ceil(D / group), group], the last group filled up with zeros."""
    padded = F.pad(x, (0, -x.shape[-1] % group))
    return padded.view(*x.shape[:-1], -1, group)


def round_activations(x: Tensor, format: LinearFormat, group: int | None) -> Tensor:
    """[..., K], float64: what a layer of this format makes of its input before it multiplies."""
    match format:
        case "f32":
            return x.double()
        case "bf16":
            return x.bfloat16().double()
        case "int8":
            values, scales = quantize(x.float())
            return values.double() * scales[..., None].double()
        case "int4":
            assert group is not None
            values, scales = quantize(in_groups(x.float(), group))
            return (values.double() * scales[..., None].double()).flatten(-2)[..., : x.shape[-1]]


def linear(
    x: Tensor,
    weight: FormattedWeight,
    bias: Tensor | None = None,
    activation: LinearActivation | None = None,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """activation(x W^T + bias) + residual, with both factors rounded as the format says and everything after that in float64.

    Args:
        x: [..., K], float32 or bfloat16.
        weight: of a layer with K inputs and N outputs.
        bias: [N].
        activation: applied to the sum with the bias; None: none.
        residual: [..., N], added last.
        dtype: of the result; by default that of x.

    Returns:
        [..., N].

    Raises:
        ShapeError: the bias is not [N], or the residual not [..., N].
    """
    num_outputs = weight.values.shape[0]
    scaled = weight.values.double() if weight.scales is None else weight.dense().double()
    result = round_activations(x, weight.format, weight.group) @ scaled.T
    if bias is not None:
        expect_shape("bias", bias, (num_outputs,))
        result = result + bias.double()
    result = activate(result, activation)
    if residual is not None:
        expect_shape("residual", residual, (*x.shape[:-1], num_outputs))
        result = result + residual.double()
    return result.to(x.dtype if dtype is None else dtype)


def gate_up(x: Tensor, gate: FormattedWeight, up: FormattedWeight, *, dtype: torch.dtype | None = None) -> Tensor:
    """silu(x G^T) * (x U^T): the first half of a gated feed-forward layer (Shazeer 2020, arXiv:2002.05202).

    Args:
        x: [..., K].
        gate: K inputs, N outputs.
        up: the same shape and format.
        dtype: of the result; by default that of x.

    Returns:
        [..., N].
    """
    product = linear(x, gate, activation="silu", dtype=torch.float64) * linear(x, up, dtype=torch.float64)
    return product.to(x.dtype if dtype is None else dtype)


def activate(x: Tensor, activation: LinearActivation | None) -> Tensor:
    """One of the activations that a linear layer can end with."""
    match activation:
        case None:
            return x
        case "gelu_erf":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
