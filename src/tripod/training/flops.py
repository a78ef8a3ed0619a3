"""The arithmetic of a training step, for the share of a machine's peak that it reaches."""

from __future__ import annotations

import torch

from tripod.models.architectures import DecoderConfig, build
from tripod.models.moe import SparseMLP


def flops_per_token(config: DecoderConfig, seq_length: int) -> int:
    """Floating-point operations of forward and backward for one target (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

    6 for each parameter that is multiplied, which are all but the embedding's rows (a look-up), and 12 L H K T for scores and values
    of attention, not halved for the causal mask. What is computed twice to save memory does not count; what a capacity drops does.
    """
    num_multiplied = num_active_parameters(config) - (0 if config.is_tied else config.vocab_size * config.hidden_size)
    return 6 * num_multiplied + 12 * config.num_layers * config.num_heads * config.head_dim * seq_length


def num_active_parameters(config: DecoderConfig) -> int:
    """Parameters that a token meets: of the experts of a sparse layer, as many as it goes through."""
    with torch.device("meta"):
        model = build(config)
    inactive = 0
    for module in model.modules():
        if isinstance(module, SparseMLP):
            router = module.router.config
            of_expert = (module.experts.up.numel() + module.experts.down.numel()) // router.num_experts
            inactive += (router.num_experts - router.top_k) * of_expert
    return sum(parameter.numel() for parameter in model.parameters()) - inactive
