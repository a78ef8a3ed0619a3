"""LangChain: an in-memory vector store and its BM25 retriever, joined by the ensemble retriever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.retrieval.frameworks.worker import Build, Retrieve

CANDIDATES = 20  # from each side


def load(encoder: str) -> tuple[Build, Retrieve]:
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.retrievers import BM25Retriever
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_huggingface import HuggingFaceEmbeddings

    embeddings = HuggingFaceEmbeddings(model_name=encoder, model_kwargs={"device": "cpu"}, encode_kwargs={"normalize_embeddings": True})

    def build(ids: Sequence[str], texts: Sequence[str]) -> Any:
        documents = [Document(page_content=text, id=name, metadata={"id": name}) for name, text in zip(ids, texts, strict=True)]
        store = InMemoryVectorStore.from_documents(documents, embeddings)
        by_words = BM25Retriever.from_documents(documents, k=CANDIDATES)
        by_meaning = store.as_retriever(search_kwargs={"k": CANDIDATES})
        return EnsembleRetriever(retrievers=[by_words, by_meaning], weights=[0.5, 0.5])

    def retrieve(retriever: Any, question: str) -> list[str]:
        return [document.metadata["id"] for document in retriever.invoke(question)]

    return build, retrieve


def versions() -> Mapping[str, str]:
    return {
        name: version(name) for name in ("langchain-core", "langchain-classic", "langchain-community", "sentence-transformers", "torch")
    }
