"""How Hugging Face's config.json spells rotary embeddings: `rope_theta` beside `rope_scaling`, or all in `rope_parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from tripod.errors import ConfigError
from tripod.ops.rope import LinearScaling, Llama3Scaling, RopeConfig, RopeScaling, YarnScaling

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")


def rope_from_hf(
    config: Mapping[str, Any],
    *,
    head_dim: int,
    max_positions: int,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
    default_fraction: float = 1.0,
) -> RopeConfig:
    """Read either spelling.

    Args:
        config: the content of config.json.
        head_dim: K, of which a fraction is rotated.
        max_positions: stands in where a scaling does not say for which context it was trained.
        theta_key: the architecture's older name of the base.
        fraction_key: the architecture's older name of the rotated fraction.
        default_fraction: where the file does not give one.

    Raises:
        ConfigError: an unknown rope type, or one without its numbers.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = parameters.get("rope_theta", config.get(theta_key, 10_000.0))
    fraction = parameters.get("partial_rotary_factor", config.get(fraction_key, default_fraction))
    original = parameters.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or max_positions
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in SUPPORTED:
        raise ConfigError(f"rope type {kind!r} in config.json is not supported; supported: {', '.join(SUPPORTED)}")
    try:
        return RopeConfig(
            rotary_dim=int(head_dim * fraction), theta=float(theta), scaling=_scaling_from_hf(kind, parameters, int(original))
        )
    except KeyError as error:
        raise ConfigError(f"rope type {kind!r} in config.json lacks {error}; it gives {sorted(parameters)}") from None


def _scaling_from_hf(kind: str, parameters: Mapping[str, Any], original_max_positions: int) -> RopeScaling | None:
    match kind:
        case "linear":
            return LinearScaling(factor=parameters["factor"])
        case "llama3":
            return Llama3Scaling(
                factor=parameters["factor"],
                low_freq_factor=parameters["low_freq_factor"],
                high_freq_factor=parameters["high_freq_factor"],
                original_max_positions=original_max_positions,
            )
        case "yarn":
            return YarnScaling(
                factor=parameters["factor"],
                original_max_positions=original_max_positions,
                beta_fast=parameters.get("beta_fast") or 32.0,
                beta_slow=parameters.get("beta_slow") or 1.0,
                attention_factor=parameters.get("attention_factor"),
                mscale=parameters.get("mscale"),
                mscale_all_dim=parameters.get("mscale_all_dim"),
                truncate=parameters.get("truncate", True),
            )
        case _:  # "dynamic" changes nothing up to max_positions, beyond which no request is admitted
            return None


def rope_to_hf(rope: RopeConfig, *, head_dim: int) -> dict[str, Any]:
    """The content of `rope_parameters` in config.json."""
    parameters: dict[str, Any] = {"rope_theta": rope.theta, "partial_rotary_factor": rope.rotary_dim / head_dim}
    match rope.scaling:
        case None:
            return {"rope_type": "default", **parameters}
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor, **parameters}
        case Llama3Scaling() as scaling:
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
                **parameters,
            }
        case YarnScaling() as scaling:
            optional = {
                "attention_factor": scaling.attention_factor,
                "mscale": scaling.mscale,
                "mscale_all_dim": scaling.mscale_all_dim,
            }
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
                "original_max_position_embeddings": scaling.original_max_positions,
                **{name: value for name, value in optional.items() if value is not None},
                **parameters,
            }
        case _:
            assert_never(rope.scaling)
