"""The arithmetic of a training step, for the share of a machine's peak that it reaches."""

from __future__ import annotations

from tripod.models.architectures import DecoderConfig
from tripod.models.initialize import num_parameters


def flops_per_token(config: DecoderConfig, seq_length: int) -> int:
    """Floating-point operations of forward and backward for one target (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

    6 for each parameter that is multiplied, which are all but the embedding's rows (a look-up), and 12 L H K T for scores and values
    of attention, not halved for the causal mask. What is computed twice to save memory does not count.
    """
    num_multiplied = num_parameters(config) - (0 if config.is_tied else config.vocab_size * config.hidden_size)
    return 6 * num_multiplied + 12 * config.num_layers * config.num_heads * config.head_dim * seq_length
