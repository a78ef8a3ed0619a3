"""The four workloads: token-id prompts and how many tokens each gets, the same for every engine. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LOWEST_ID = 100  # below lie special tokens of the usual tokenizers
HIGHEST_ID = 50_000  # every shape has these

_W2_SHAPE_SEED = 20


@dataclass(frozen=True, slots=True)
class Requests:
    """Prompts, and the number of tokens that each is answered with: greedy, the end-of-sequence token ignored."""

    prompts: list[list[int]]
    num_outputs: list[int]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        return sum(self.num_outputs)


def w1(seed: int) -> Requests:
    """One stream: 128 tokens of prompt, 128 generated."""
    return Requests([_ids(np.random.default_rng(seed), 128)], [128])


def w2(seed: int) -> Requests:
    """Offline: 64 requests, prompts of 32 to 256 tokens, answers of 16 to 128. The lengths are the same for every seed."""
    shape, values = np.random.default_rng(_W2_SHAPE_SEED), np.random.default_rng(seed)
    prompt_lens, num_outputs = shape.integers(32, 257, size=64), shape.integers(16, 129, size=64)
    return Requests([_ids(values, int(n)) for n in prompt_lens], [int(n) for n in num_outputs])


def w3(seed: int) -> Requests:
    """Prefill: 1,024 tokens of prompt, one generated."""
    return Requests([_ids(np.random.default_rng(seed), 1024)], [1])


def w4(seed: int) -> Requests:
    """32 requests that share their first 512 tokens, 32 tokens of their own each, 32 generated."""
    rng = np.random.default_rng(seed)
    prefix = _ids(rng, 512)
    return Requests([prefix + _ids(rng, 32) for _ in range(32)], [32] * 32)


WORKLOADS: dict[str, Callable[[int], Requests]] = {"w1": w1, "w2": w2, "w3": w3, "w4": w4}


def _ids(rng: np.random.Generator, n: int) -> list[int]:
    return [int(i) for i in rng.integers(LOWEST_ID, HIGHEST_ID, size=n)]
