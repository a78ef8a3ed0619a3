"""Our stores as a Haystack document store: a document is a source with one passage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError

import tripod
from tripod.documents import Document as Source
from tripod.documents import Passage, SourceState, StoredSource
from tripod.errors import RequestError
from tripod.filters import And, F, Filter, Not, Or, parse
from tripod.protocols import Store
from tripod.retrieval.open_store import open_store


class HaystackStore:
    """Every method is a coroutine, `x_async`; `x` runs it on the bridge."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened: Store | None = None

    def __getattr__(self, name: str) -> Any:
        work = getattr(type(self), f"{name}_async")
        return wraps(work)(lambda *arguments, **options: tripod.run(work(self, *arguments, **options)))

    async def store(self) -> Store:
        self._opened = self._opened or await open_store(self._address, pipeline="haystack", embedder="haystack")
        return self._opened

    async def count_documents_async(self, filters: dict[str, Any] | None = None) -> int:
        return len(await (await self.store()).sources(_filter(filters) if filters else None))

    count_documents_by_filter_async = count_documents_async

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        store = await self.store()
        names = await store.sources(_filter(filters) if filters else None)
        return [_document(stored) for name in names if (stored := await store.read(name)) is not None]

    async def write_documents_async(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise ValueError("documents must be a list of Haystack documents")
        known = await (await self.store()).sources({"source": [document.id for document in documents]}) if documents else {}
        if known and policy in (DuplicatePolicy.FAIL, DuplicatePolicy.NONE):
            raise DuplicateDocumentError(f"{', '.join(known)}: there already")
        written = [document for document in documents if policy != DuplicatePolicy.SKIP or document.id not in known]
        for document in written:
            vectors = None if document.embedding is None else np.array([document.embedding], dtype=np.float32)
            source = Source(source=document.id, text=document.content or "", metadata=document.meta)
            passage = Passage(source=source.source, start=0, end=len(source.text), text=source.text)
            await (await self.store()).replace(source, [passage], vectors, SourceState(digest="haystack"))
        return len(written)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        for name in document_ids:
            await (await self.store()).remove(name)

    async def delete_all_documents_async(self) -> None:
        await self.delete_documents_async(list(await (await self.store()).sources()))

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        await self.delete_documents_async(found := list(await (await self.store()).sources(_filter(filters))))
        return len(found)

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        found = [replace(document, meta=document.meta | meta) for document in await self.filter_documents_async(filters)]
        return await self.write_documents_async(found, DuplicatePolicy.OVERWRITE)


def _document(stored: StoredSource) -> Document:
    one, embedding = stored.document, None if stored.vectors is None else stored.vectors[0].tolist()
    return Document(id=one.source, content=one.text, meta=dict(one.metadata), embedding=embedding)


def _filter(filters: Mapping[str, Any]) -> Filter:
    match filters:
        case {"operator": "AND" | "OR" | "NOT" as operator, "conditions": conditions}:
            parts = tuple(_filter(part) for part in conditions)
            return Or(parts) if operator == "OR" else Not(And(parts)) if operator == "NOT" else And(parts)
        case {"operator": "==" | "!=" | "<" | "<=" | ">" | ">=" as operator, "field": field, "value": None}:
            there = F(field.removeprefix("meta.")).exists()  # None is Haystack's word for a field that is not there
            return {"==": ~there, "!=": there}.get(operator, Or(()))
        case {"operator": operator, "field": field, "value": value} if not isinstance(value, tuple):  # Haystack refuses tuples
            try:
                return parse({field.removeprefix("meta."): {operator: value}})
            except RequestError as error:
                raise FilterError(str(error)) from error
        case _:
            raise FilterError(f"{filters} is neither a comparison nor a list of conditions")
