"""Fresh models out of a seed."""

from __future__ import annotations

import math

import torch
from torch import nn

from tripod.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from tripod.models.llama import Llama, LlamaConfig


def random_language_model(config: LlamaConfig | GPTNeoXConfig, seed: int, *, dtype: torch.dtype = torch.float32) -> Llama | GPTNeoX:
    """A model whose weights are a pure function of config and seed.

    Matrices are normal with variance 2 / (5 D), as GPT-NeoX begins (Nguyen & Salazar 2019, arXiv:1910.05895); norms are
    ones, biases zeros. Drawn in float32 on the CPU, whatever `dtype`.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.device("cpu"):
        model = Llama(config) if isinstance(config, LlamaConfig) else GPTNeoX(config)
    std = math.sqrt(2.0 / (5.0 * config.hidden_size))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    return model.to(dtype).eval().requires_grad_(False)
