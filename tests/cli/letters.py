"""An embedder that counts letters: small, exact, and never the default one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy

if TYPE_CHECKING:
    from tripod.protocols import Vectors


class LetterEmbedder:
    """Unit vectors of letter counts."""

    fingerprint = "letters"
    dim = 26

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> Vectors:
        counts = numpy.array([[text.lower().count(letter) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype="f4")
        vectors: Vectors = counts / numpy.linalg.norm(counts, axis=1, keepdims=True)
        return vectors
