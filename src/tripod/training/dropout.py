"""Dropout put on a model from outside (Srivastava et al. 2014), where GPT-NeoX has its hidden dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class RowDropout:
    """Drops numbers behind the embedding and behind each attention and MLP, while rows are being trained.

    What is dropped in a row is a function of the seed and of the row's number in the run, so neither micro-batches nor a
    resumption change it.
    """

    def __init__(self, model: nn.Module, rate: float, seed: int) -> None:
        self._keep = 1.0 - rate
        self._seed = seed
        self._generators: list[torch.Generator] = []
        if rate:
            for name, module in model.named_modules():
                if name == "embedding" or name.endswith((".attention", ".mlp")):
                    module.register_forward_hook(self._drop)

    @contextmanager
    def training(self, rows: Sequence[int]) -> Iterator[None]:
        """Within the block, the model is given these rows of the run, in this order."""
        self._generators = [_generator(self._seed, row) for row in rows]
        try:
            yield
        finally:
            self._generators = []

    def _drop(self, module: nn.Module, given: Any, output: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        if not self._generators:
            return output
        kept = torch.stack([torch.empty(output.shape[1:]).bernoulli_(self._keep, generator=generator) for generator in self._generators])
        return output * (kept / self._keep).to(output)


def _generator(seed: int, row: int) -> torch.Generator:
    digest = hashlib.sha256(f"dropout {seed} {row}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
