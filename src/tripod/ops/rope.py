"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and the ways to stretch it over longer contexts."""

# R rotary size: the first R of the K numbers of a head are rotated, R/2 planes of two numbers each

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from tripod.errors import ConfigError
from tripod.ops.shape import expect_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Position interpolation: every position is divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: slow planes are interpolated, fast ones kept, those between blended (arXiv:2407.21783, and its release).

    A plane is slow when it turns fewer than `low_freq_factor` times within `original_max_positions`, fast from `high_freq_factor` times.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor={self.low_freq_factor} of llama3 rope must be below high_freq_factor={self.high_freq_factor}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): a ramp over the planes from interpolation to none, and warmer attention.

    `attention_factor` multiplies cosine and sine, so its square multiplies the attention scores; None is the paper's
    0.1 ln(factor) + 1, or the quotient of two such terms where `mscale` and `mscale_all_dim` are given (DeepSeek).
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0  # turns within the original context from which a plane is kept
    beta_slow: float = 1.0  # turns below which it is interpolated
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True  # round the ends of the ramp outwards to whole planes


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Which part of a head turns, how fast, and how that is stretched."""

    rotary_dim: int  # R
    theta: float = 10_000.0  # the slowest plane turns once in about 2 pi theta tokens
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(f"rotary_dim={self.rotary_dim} cannot be rotated in pairs; it must be even and at least 2")


def inverse_frequencies(config: RopeConfig) -> tuple[Tensor, float]:
    """The angle that each plane turns per token, and the factor on cosine and sine.

    Returns:
        ([R/2], float32, radians a token, falling), and the attention factor: 1 but for YaRN.
    """
    base = 1.0 / config.theta ** (torch.arange(0, config.rotary_dim, 2, dtype=torch.int64, device="cpu").float() / config.rotary_dim)
    match config.scaling:
        case None:
            return base, 1.0
        case LinearScaling(factor=factor):
            return base / factor, 1.0
        case Llama3Scaling() as scaling:
            turns = scaling.original_max_positions * base / (2.0 * math.pi)
            kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            return _blend(base / scaling.factor, base, kept.clamp(0.0, 1.0)), 1.0
        case YarnScaling() as scaling:
            low, high = (_plane_of(turns, scaling, config) for turns in (scaling.beta_fast, scaling.beta_slow))
            if scaling.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, config.rotary_dim - 1)
            plane = torch.arange(config.rotary_dim // 2, dtype=torch.float32, device="cpu")
            interpolated = ((plane - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
            return _blend(base, base / scaling.factor, interpolated), _yarn_attention_factor(scaling)
        case _:
            assert_never(config.scaling)


def _blend(start: Tensor, end: Tensor, share_of_end: Tensor) -> Tensor:
    return start * (1.0 - share_of_end) + end * share_of_end


def _plane_of(turns: float, scaling: YarnScaling, config: RopeConfig) -> float:
    """The plane, as a real number, that turns so many times within the original context."""
    return config.rotary_dim * math.log(scaling.original_max_positions / (turns * 2.0 * math.pi)) / (2.0 * math.log(config.theta))


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def warmth(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return warmth(scaling.mscale) / warmth(scaling.mscale_all_dim)
    return warmth(1.0)


class Rope:
    """Cosine and sine of every position, tabulated once, so that a position has the same bits in whatever batch it comes.

    The table stays float32 when a model is cast: bfloat16 angles are wrong from a few hundred tokens on.
    """

    def __init__(self, config: RopeConfig, max_positions: int) -> None:
        frequencies, factor = inverse_frequencies(config)
        angles = torch.arange(max_positions, dtype=torch.float32, device="cpu")[:, None] * frequencies
        self._cos = angles.cos() * factor  # [max_positions, R/2]
        self._sin = angles.sin() * factor

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine for a head axis to be broadcast over: positions [...] -> twice [..., 1, R/2], float32."""
        cos, sin = self.tables(positions.device)
        return cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine of all positions, kept on that device from now on: twice [max_positions, R/2], float32."""
        if self._cos.device != device:
            self._cos, self._sin = self._cos.to(device), self._sin.to(device)
        return self._cos, self._sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn plane i, spanned by numbers i and i + R/2 of each head, by the angle of its token.

    Args:
        x: [..., H, K] queries or keys.
        cos: [..., 1, R/2], as `Rope` gives them; R may be smaller than K, the rest of a head is left as it is.
        sin: as cos.

    Returns:
        [..., H, K] in the dtype of x; computed in that dtype.

    Raises:
        ShapeError: cos or sin does not belong to the tokens of x.
    """
    half = cos.shape[-1]
    expect_shape("cos", cos, (*x.shape[:-2], 1, half))
    expect_shape("sin", sin, tuple(cos.shape))
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
