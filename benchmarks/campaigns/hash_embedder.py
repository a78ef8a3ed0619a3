"""A cheap deterministic embedder: texts that share words are near each other. It stands for a model's cost, never for its quality."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


class HashEmbedder:
    """Each word is a fixed random direction; a text is their sum, normalised."""

    fingerprint = "hash-of-words, 32 dimensions"
    dim = 32

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> NDArray[np.float32]:
        return np.array([_vector(text) for text in texts], dtype=np.float32).reshape(len(texts), self.dim)


def _vector(text: str) -> NDArray[np.float64]:
    total = np.full(HashEmbedder.dim, 1e-3)  # a text without words has a direction too
    for word in re.findall(r"\w+", text.lower()):
        total += np.frombuffer(hashlib.sha256(word.encode()).digest(), dtype=np.uint8) - 127.5
    return total / np.linalg.norm(total)
