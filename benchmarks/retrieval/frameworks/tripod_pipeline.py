"""Tripod: an index file, hybrid search."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tripod
from benchmarks.retrieval.frameworks.worker import Build, Retrieve
from tripod.retrieval.index import Index
from tripod.retrieval.local_embedder import LocalEmbedder

WHOLE_TEXT = 1_000_000  # tokens of a passage: no text here is cut, as the judgements are about whole texts


def load(encoder: str) -> tuple[Build, Retrieve]:
    embedder = LocalEmbedder(Path(encoder), name="encoder")
    tripod.run(embedder.embed(["a text"], kind="passage"))  # loads the weights, as the others do here too
    scratch = tempfile.TemporaryDirectory(prefix="tripod-compare-")

    def build(ids: Sequence[str], texts: Sequence[str]) -> Index:
        async def made() -> Index:
            index = Index(Path(scratch.name) / "kb.db", embedder=embedder, max_passage_tokens=WHOLE_TEXT)
            await index.__aenter__()
            await index.add(tripod.Document(source=name, text=text) for name, text in zip(ids, texts, strict=True))
            return index

        return tripod.run(made())

    def retrieve(index: Index, question: str) -> list[str]:
        return [passage.source for passage in tripod.run(index.search(question, k=10))]

    return build, retrieve


def versions() -> Mapping[str, str]:
    return {"tripod": tripod.__version__}
