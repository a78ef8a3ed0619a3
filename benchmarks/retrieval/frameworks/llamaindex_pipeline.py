"""LlamaIndex: a vector index and its BM25 retriever, joined by query fusion with reciprocal ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.retrieval.frameworks.worker import Build, Retrieve

CANDIDATES = 20  # from each side


def load(encoder: str) -> tuple[Build, Retrieve]:
    from llama_index.core import Settings, VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.retrievers import QueryFusionRetriever
    from llama_index.core.schema import TextNode
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.retrievers.bm25 import BM25Retriever

    Settings.llm = MockLLM()  # none is called, but without one it asks for a key
    Settings.embed_model = HuggingFaceEmbedding(model_name=encoder, device="cpu")

    def build(ids: Sequence[str], texts: Sequence[str]) -> Any:
        nodes = [TextNode(text=text, id_=name) for name, text in zip(ids, texts, strict=True)]
        by_meaning = VectorStoreIndex(nodes).as_retriever(similarity_top_k=CANDIDATES)
        by_words = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=CANDIDATES)
        return QueryFusionRetriever(
            [by_meaning, by_words], num_queries=1, mode="reciprocal_rerank", similarity_top_k=CANDIDATES, use_async=False
        )

    def retrieve(retriever: Any, question: str) -> list[str]:
        return [found.node.node_id for found in retriever.retrieve(question)]

    return build, retrieve


def versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("llama-index-core", "llama-index-retrievers-bm25", "sentence-transformers", "torch")}
