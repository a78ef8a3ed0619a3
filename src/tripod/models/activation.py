"""The activations that config.json names in `hidden_act`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from tripod.errors import ConfigError

_tanh_gelu = partial(gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,  # x Phi(x), by the error function (Hendrycks & Gimpel 2016, arXiv:1606.08415)
    "gelu_new": _tanh_gelu,  # its approximation by tanh, under the names that it has had
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": relu,
    "silu": silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name.

    Raises:
        ConfigError: it is not one of ours.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
