"""Haystack: an in-memory store, its two retrievers and a joiner with reciprocal ranks, in a pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.retrieval.frameworks.worker import Build, Retrieve

CANDIDATES = 20  # from each side


def load(encoder: str) -> tuple[Build, Retrieve]:
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    from haystack import Document, Pipeline
    from haystack.components.joiners import DocumentJoiner
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
    from haystack.components.writers import DocumentWriter
    from haystack.document_stores.in_memory import InMemoryDocumentStore
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.embedders.sentence_transformers import (
        SentenceTransformersDocumentEmbedder,
        SentenceTransformersTextEmbedder,
    )

    options = {"model": encoder, "device": ComponentDevice.from_str("cpu"), "progress_bar": False}
    of_documents, of_questions = SentenceTransformersDocumentEmbedder(**options), SentenceTransformersTextEmbedder(**options)
    of_documents.warm_up()
    of_questions.warm_up()

    def build(ids: Sequence[str], texts: Sequence[str]) -> Any:
        store = InMemoryDocumentStore(embedding_similarity_function="cosine")
        indexing = Pipeline()
        indexing.add_component("embedder", of_documents)
        indexing.add_component("writer", DocumentWriter(store))
        indexing.connect("embedder.documents", "writer.documents")
        indexing.run({"embedder": {"documents": [Document(id=name, content=text) for name, text in zip(ids, texts, strict=True)]}})
        querying = Pipeline()
        querying.add_component("embedder", of_questions)
        querying.add_component("by_meaning", InMemoryEmbeddingRetriever(store, top_k=CANDIDATES))
        querying.add_component("by_words", InMemoryBM25Retriever(store, top_k=CANDIDATES))
        querying.add_component("joiner", DocumentJoiner(join_mode="reciprocal_rank_fusion"))
        querying.connect("embedder.embedding", "by_meaning.query_embedding")
        querying.connect("by_words", "joiner")
        querying.connect("by_meaning", "joiner")
        return querying

    def retrieve(pipeline: Any, question: str) -> list[str]:
        found = pipeline.run({"embedder": {"text": question}, "by_words": {"query": question}})
        return [document.id for document in found["joiner"]["documents"]]

    return build, retrieve


def versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("haystack-ai", "sentence-transformers-haystack", "sentence-transformers", "torch")}
