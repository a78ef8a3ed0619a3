"""What all our decoders have in common: an embedding, blocks one after the other, a last norm and an output matrix."""

# D hidden size, V vocabulary; "..." any leading dimensions

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tripod.ops.attention import Attend
from tripod.ops.rope import Rope


class DecoderStack(nn.Module):
    """A `LanguageModel`, but for its config. Tied models have no `head`: the embedding serves as one."""

    def __init__(self, embedding: nn.Embedding, rope: Rope, blocks: Iterable[nn.Module], norm: nn.Module, *, is_tied: bool = False) -> None:
        """blocks: each takes rows [..., D], the cosines and sines of their positions, and who sees whom."""
        super().__init__()
        self.rope = rope
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = None if is_tied else nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[...] token ids and positions -> [..., D] after the last norm; see `LanguageModel.hidden`."""
        x = self.embedding(token_ids)
        cos, sin = self.rope(positions)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        head = self.embedding if self.head is None else self.head
        return nn.functional.linear(hidden, head.weight)
