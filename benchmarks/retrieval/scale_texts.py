"""The texts, vectors and questions of `benchmarks.retrieval.scale`, generated: as many as wanted, the same every time.

    python -m benchmarks.retrieval.scale_texts      # how far the vectors are like MiniLM's of SQuAD's paragraphs

Documents of ten passages, each of sixty words: two thirds are drawn by Zipf's law from a vocabulary of 30,000, one third from the sixty
words of the document's topic, one of 400 of 25 fields. The vector of a word (384 dimensions, whose variance falls as in real embeddings)
leans to its topic and field; that of a text is the normalised sum of its words', weighted by how rare they are. So mean cosines with the
tenth nearest text and the effective dimension are like MiniLM's. A question is eight words of a passage.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import tripod
from benchmarks.retrieval.judged_sets import squad
from tripod.documents import Document, Section
from tripod.retrieval.local_embedder import find_default_embedder

DIM = 384
PASSAGES_A_SOURCE = 10
_COMMON, _SPECIAL = 40, 20  # words of a passage
_NUM_WORDS, _NUM_TOPICS, _NUM_FIELDS, _TOPIC_WORDS = 30_000, 400, 25, 60
_FIRST_TOPICAL = 300  # the more frequent words belong to no topic
_SEED = 20261126
# Five letters, so that a word is one token of the splitter's; no ending that a stemmer would take off.
_WORDS = np.array(list(islice(map("".join, product("bfhjkmnpqrtvwxz", "aiou", "bfhjkmnpqrtvwxz", "aiou", "bfhjkmnpqrtvwxz")), 54_000)))[
    np.random.default_rng(_SEED).permutation(54_000)[:_NUM_WORDS]
]
_FREQUENCY = 1 / (np.arange(_NUM_WORDS) + 2.7)  # Zipf's law with Mandelbrot's shift
_TOPICS = np.random.default_rng(_SEED + 1).integers(_FIRST_TOPICAL, _NUM_WORDS, size=(_NUM_TOPICS, _TOPIC_WORDS))


class WordEmbedder:
    """An `Embedder` whose vectors are sums of the vectors of words."""

    dim = DIM
    fingerprint = f"sums of word vectors, {DIM} dimensions, seed {_SEED}"

    def __init__(self) -> None:
        generator = np.random.default_rng(_SEED + 2)
        spread = (np.arange(DIM, dtype=np.float32) + 20) ** -0.5
        words = generator.normal(size=(_NUM_WORDS, DIM)).astype(np.float32)
        topics = 0.5 * generator.normal(size=(_NUM_TOPICS, DIM)).astype(np.float32)
        fields = 0.5 * generator.normal(size=(_NUM_FIELDS, DIM)).astype(np.float32)
        for number, members in enumerate(_TOPICS):
            words[members] += topics[number] + fields[number % _NUM_FIELDS]
        self._vectors = words * spread * np.log(_FREQUENCY.sum() / _FREQUENCY)[:, None].astype(np.float32)
        self._number = {word: number for number, word in enumerate(_WORDS.tolist())}

    async def embed(self, texts: Sequence[str], *, kind: Literal["query", "passage"]) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), DIM), dtype=np.float32)
        for i, text in enumerate(texts):
            vectors[i] = self._vectors[[self._number[word] for word in text.split() if word in self._number]].sum(axis=0)
        unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        return unit


def documents(num_passages: int, version: str = "first") -> Iterator[Document]:
    """The same texts for the same number, but for a first word of each passage that names the version."""
    generator = np.random.default_rng(_SEED)
    cumulated = np.cumsum(_FREQUENCY) / _FREQUENCY.sum()
    for i in range(num_passages // PASSAGES_A_SOURCE):
        topic = _TOPICS[generator.integers(_NUM_TOPICS)]
        common = np.searchsorted(cumulated, generator.random((PASSAGES_A_SOURCE, _COMMON)))
        special = generator.choice(topic, size=(PASSAGES_A_SOURCE, _SPECIAL))
        ids = generator.permuted(np.concatenate([common, special], axis=1), axis=1)
        parts = [f"{version} {' '.join(words)}" for words in _WORDS[ids].tolist()]
        starts = np.cumsum([0, *(len(part) + 2 for part in parts)]).tolist()
        sections = tuple(Section(start, start + len(part)) for start, part in zip(starts, parts, strict=False))
        yield Document(source=f"d{i:06}", text="\n\n".join(parts), sections=sections, metadata={"year": 2000 + i % 25})


def questions(given: Sequence[Document], number: int) -> list[str]:
    """Eight words each of as many passages, spread over all."""
    generator = random.Random(_SEED)
    found = []
    for document in given[:: max(len(given) // number, 1)][:number]:
        section = generator.choice(document.sections)
        found.append(" ".join(generator.sample(document.text[section.start : section.end].split()[1:], 8)))
    return found


def geometry(vectors: NDArray[np.float32]) -> dict[str, float]:
    """Mean cosines, and the effective dimension: (sum of the covariance's eigenvalues)^2 / sum of their squares."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    ordered = np.sort(cosines, axis=1)
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    return {
        "nearest": float(ordered[:, -1].mean()),
        "tenth": float(ordered[:, -10].mean()),
        "any": float(cosines.mean()),
        "effective dimension": float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()),
    }


def main() -> None:
    embedder, why_not = find_default_embedder()
    if embedder is None:
        sys.exit(why_not)
    real = list(squad().documents.values())
    ours = [document.text[: document.sections[0].end] for document in documents(len(real) * PASSAGES_A_SOURCE)]
    print("MiniLM:", geometry(tripod.run(embedder.embed(real, kind="passage"))))
    print("ours:  ", geometry(tripod.run(WordEmbedder().embed(ours, kind="passage"))))


if __name__ == "__main__":
    main()
