"""Fresh models out of a seed."""

from __future__ import annotations

import hashlib
import math
from typing import Literal, TypeAlias, assert_never

import torch
from torch import nn

from tripod.models.architectures import Decoder, DecoderConfig, build
from tripod.models.moe import Experts, Router

Initialization: TypeAlias = Literal["small-wang", "normal-scaled", "fan-in"]

_OUTPUT_SIDE = (
    ".attention.output.weight",
    "mlp.down.weight",
    ".experts.down",
    ".shared.down.weight",
)  # the matrices that write into the residual stream


def random_language_model(config: DecoderConfig, seed: int, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model whose weights are a pure function of config and seed.

    Matrices are normal with variance 2 / (5 D), as GPT-NeoX begins (Nguyen & Salazar 2019, arXiv:1910.05895); norms are
    ones, biases zeros. Drawn in float32 on the CPU, whatever `dtype`.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.device("cpu"):
        model = build(config)
    std = math.sqrt(2.0 / (5.0 * config.hidden_size))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Router):
            nn.init.normal_(module.weight, std=std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Experts):
            nn.init.normal_(module.up, std=std, generator=generator)
            nn.init.normal_(module.down, std=std, generator=generator)
    return model.to(dtype).eval().requires_grad_(False)


def initial_language_model(config: DecoderConfig, seed: int, scheme: Initialization, *, base_width: int | None = None) -> Decoder:
    """A float32 model to train, on the CPU. Matrices are normal with `standard_deviation`, norms ones, biases zeros.

    Each tensor has a generator of its own, seeded by `seed` and its name: its values depend neither on the device that trains it
    nor on which other tensors there are or on who draws them first.
    """
    with torch.device("meta"):
        model = build(config)
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()  # selection biases of routers
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
            std = standard_deviation(name, config, scheme, base_width=base_width, fan_in=parameter.shape[-1])
            nn.init.normal_(parameter, std=std, generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
    return model.train()


def standard_deviation(
    name: str, config: DecoderConfig, scheme: Initialization, *, base_width: int | None = None, fan_in: int | None = None
) -> float:
    """Of the matrix `name` of our models. D hidden size, L layers.

    small-wang: sqrt(2 / (5 D)) ("small init", Nguyen & Salazar 2019, arXiv:1910.05895), and 2 / (L sqrt(D)) for the matrices that write
    into the residual stream (Wang & Komatsuzaki 2021, GPT-J): Pythia up to 2.8b.
    fan-in: sqrt(0.1 / inputs) (`fan_in`, by default D), 0.02 in routers, 1 in the embedding (ST-MoE, arXiv:2202.08906): OpenMoE.
    normal-scaled: 0.02, and 0.02 / sqrt(2 L) for those (Radford et al. 2019, GPT-2; Megatron): Pythia 6.9b and 12b.

    With a base width, that of a model so wide, carried over by muP (Yang et al. 2022, arXiv:2203.03466, table 3): times the root of
    base / D inside the blocks, base / D in the head, and as it is in the embedding.
    """
    is_output_side = name.endswith(_OUTPUT_SIDE)
    width = config.hidden_size if base_width is None else base_width
    ratio = width / config.hidden_size
    carried = 1.0 if name.startswith("embedding.") else ratio if name.startswith("head.") else math.sqrt(ratio)
    match scheme:
        case "small-wang":
            return carried * (2.0 / (config.num_layers * math.sqrt(width)) if is_output_side else math.sqrt(0.4 / width))
        case "normal-scaled":
            return carried * (0.02 / math.sqrt(2.0 * config.num_layers) if is_output_side else 0.02)
        case "fan-in":
            if name.startswith("embedding."):
                return 1.0
            return 0.02 if name.endswith(".router.weight") else carried * math.sqrt(0.1 / (fan_in or width))
        case _:
            assert_never(scheme)


def num_parameters(config: DecoderConfig) -> int:
    """Of a model of these sizes; nothing is allocated."""
    with torch.device("meta"):
        model = build(config)
    return sum(parameter.numel() for parameter in model.parameters())
