"""Dropout put on a model from outside (Srivastava et al. 2014), where GPT-NeoX has its hidden dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class RowDropout:
    """Drops numbers behind the embedding and behind each attention and MLP, while rows are being trained.

    What is dropped in a row is a function of the seed, of the row's number in the run and of the layer, so neither micro-batches nor a
    resumption change it, nor a block that is computed twice.
    """

    def __init__(self, model: nn.Module, rate: float, seed: int) -> None:
        self._keep = 1.0 - rate
        self._seed = seed
        self._rows: Sequence[int] = ()
        if rate:
            for name, module in model.named_modules():
                if name == "embedding" or name.endswith((".attention", ".mlp")):
                    module.register_forward_hook(partial(self._drop, name))

    @contextmanager
    def training(self, rows: Sequence[int]) -> Iterator[None]:
        """Within the block, the model is given these rows of the run, in this order, forwards and backwards."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = ()

    def _drop(self, name: str, module: nn.Module, given: Any, output: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        if not self._rows:
            return output
        generators = (_generator(self._seed, row, name) for row in self._rows)
        kept = torch.stack([torch.empty(output.shape[1:]).bernoulli_(self._keep, generator=generator) for generator in generators])
        return output * (kept / self._keep).to(output)


def _generator(seed: int, row: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"dropout {seed} {row} {name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
