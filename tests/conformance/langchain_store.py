"""Our stores as a LangChain vector store: a document is a source with one passage, searched by its vector alone."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

import tripod
from tripod.documents import Document as Source
from tripod.documents import Passage, SourceState
from tripod.protocols import Store

if TYPE_CHECKING:
    from tripod.protocols import Vectors


class LangChainStore(VectorStore):
    def __init__(self, store: Store, embeddings: Embeddings) -> None:
        self._store = store
        self._embeddings = embeddings

    async def aadd_documents(self, documents: list[Document], ids: list[str] | None = None, **_: Any) -> list[str]:
        names = [name or document.id or str(uuid4()) for name, document in zip(ids or [None] * len(documents), documents, strict=True)]
        vectors = _unit(await self._embeddings.aembed_documents([document.page_content for document in documents]))
        for name, document, vector in zip(names, documents, vectors, strict=True):
            text = document.page_content
            passage = Passage(source=name, start=0, end=len(text), text=text)
            source = Source(source=name, text=text, metadata=document.metadata)
            await self._store.replace(source, [passage], vector[None], SourceState(digest="langchain"))
        return names

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        found = [await self._store.document(name) for name in ids]
        return [Document(page_content=one.text, metadata=dict(one.metadata), id=one.source) for one in found if one is not None]

    async def adelete(self, ids: list[str] | None = None, **_: Any) -> bool:
        for name in ids if ids is not None else await self._store.sources():
            await self._store.remove(name)
        return True

    async def asimilarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        if await self._store.stats() is None:
            return []  # LangChain searches what was never written
        [vector] = _unit([await self._embeddings.aembed_query(query)])
        found = await self._store.search(None, vector, k=k, where=options.get("filter"))
        return [Document(page_content=passage.text, metadata=dict(passage.metadata), id=passage.source) for passage in found]

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        return _run(self.aadd_documents(documents, **options))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return _run(self.aget_by_ids(ids))

    def delete(self, ids: list[str] | None = None, **options: Any) -> bool:
        return _run(self.adelete(ids, **options))

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        return _run(self.asimilarity_search(query, k, **options))

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[Any, Any]] | None = None, **options: Any) -> Any:
        raise NotImplementedError("an index has an address; open it, then add documents")


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return tripod.run(work)


def _unit(vectors: list[list[float]]) -> Vectors:
    array = np.array(vectors, dtype=np.float32)
    unit: Vectors = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit
