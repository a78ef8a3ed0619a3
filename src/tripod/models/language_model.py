"""What the engine and the trainer ask of a language model, whatever its architecture."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tripod.ops.attention import Attend


class LanguageModelConfig(Protocol):
    """The sizes that a caller needs: for the cache, for the checks of a request, for sampling."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...


class LanguageModel(Protocol):
    """Predicts the next token. Works for any leading dimensions: [B, T] padded sequences or [N] ragged tokens.

    `hidden` and `logits` are apart because serving needs logits for a few of the tokens only.
    """

    @property
    def config(self) -> LanguageModelConfig: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The state of each token after the last norm.

        Args:
            token_ids: [...], int64.
            positions: [...], int64: the place of each token in its own sequence, from 0, below max_positions.
            attend: which tokens see which; see `tripod.ops.attention.Attend`.

        Returns:
            [..., D] in the dtype of the weights.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token: [..., D] -> [..., V]."""
        ...
