"""The index: documents in, passages out, in one SQLite file, in a PostgreSQL database, or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias

import anyio

from tripod.documents import Document, Passage
from tripod.errors import ConfigError, NotFoundError, RequestError, StoreError
from tripod.filters import Where
from tripod.protocols import Converter, Embedder, Splitter, Store
from tripod.retrieval.converters.registry import all_converters, by_suffix
from tripod.retrieval.fetch import UrlPolicy
from tripod.retrieval.local_embedder import find_default_embedder
from tripod.retrieval.open_store import MEMORY, open_store, printable
from tripod.retrieval.origins import Origin, is_url, list_collection
from tripod.retrieval.sync import Cut, Progress, SyncReport, cut_documents, embed, sync, sync_folder
from tripod.retrieval.vector_format import FORMATS, VectorFormat
from tripod.text.splitter import Recursive

if TYPE_CHECKING:
    from tripod.protocols import Vectors

Mode: TypeAlias = Literal["bm25", "dense", "hybrid"]

PASSAGE_TOKENS = 200  # a passage and its section's title stay within the 256 tokens that MiniLM reads
_PIPELINE = "tripod-3"  # changes when a converter or the splitter makes other passages of the same files
_ADD_BATCH = 256  # documents that `add` embeds at once


class Index:
    """Documents that can be searched by words (BM25), by meaning (vectors), or by both.

        async with Index("kb.db") as index:
            await index.sync("docs/")
            passages = await index.search("how are blocks freed?")

    Args:
        location: the index file, made by the first `sync` or `add`; or "postgresql://user@host/database", and after a "#" the schema to
            keep it in; or ":memory:", which lives as long as this object.
        embedder: what turns texts into vectors. "default" is MiniLM where its weights and torch are at hand, and
            otherwise none; None searches by words only.
        max_passage_tokens: the longest passage, in approximate tokens. Part of the index: another value needs another file.
        converters: how files become documents; where two read the same suffix, the later. None: our own and those of installed packages.
        splitter: how documents become passages, instead of `max_passage_tokens`. Part of the index, too.
        vectors: how they are kept: "f32", or smaller with some loss: "f16" (half the bytes), "int8" (a quarter). None: as the index was
            made, and "f32" in a new one. PostgreSQL has no "int8".

    Raises:
        ConfigError: `embedder` is some other string, `max_passage_tokens` is below 1, or there is no such format of vectors.
        StoreError: on entering: the file is not an index, or one made by another embedder or pipeline.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        embedder: Embedder | Literal["default"] | None = "default",
        max_passage_tokens: int = PASSAGE_TOKENS,
        converters: Sequence[Converter] | None = None,
        splitter: Splitter | None = None,
        vectors: VectorFormat | None = None,
    ) -> None:
        if max_passage_tokens < 1:
            raise ConfigError(f"max_passage_tokens={max_passage_tokens} leaves no room for a passage; give at least 1")
        if vectors is not None and vectors not in FORMATS:
            raise ConfigError(f"vectors={vectors!r} is not known; give one of {', '.join(FORMATS)}")
        self.location = str(location)
        self.embedder: Embedder | None
        self._why_lexical: str | None = None
        if embedder == "default":
            self.embedder, self._why_lexical = find_default_embedder()
        elif isinstance(embedder, str):
            raise ConfigError(f'embedder={embedder!r} is not known; give "default", None, or an Embedder')
        else:
            self.embedder = embedder
            self._why_lexical = None if embedder else "no embedder was given"
        self._splitter: Splitter = splitter or Recursive(max_passage_tokens)
        self._converters: Mapping[str, Converter] = by_suffix(all_converters() if converters is None else converters)
        self._vectors = vectors
        self._store: Store | None = None
        self._in_memory: Store | None = None  # kept when it is closed
        self._num_unembedded = 0
        self._syncing = anyio.Lock()

    async def __aenter__(self) -> Index:
        if self._in_memory is not None:
            self._store = self._in_memory
        else:
            self._store = await open_store(
                self.location,
                pipeline=f"{_PIPELINE}, {self._splitter.fingerprint}",
                embedder=self.embedder.fingerprint if self.embedder else None,
                vectors=self._vectors,
            )
        if self.location == MEMORY:
            self._in_memory = self._store
        await self._look_for_missing_vectors()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        store, self._store = self.store, None
        with anyio.CancelScope(shield=True):
            await store.aclose()

    @property
    def store(self) -> Store:
        """Where everything is kept."""
        if self._store is None:
            raise StoreError(f"the index {printable(self.location)} is not open; use it inside `async with Index(...) as index:`")
        return self._store

    @property
    def is_lexical(self) -> bool:
        """Whether a hybrid search is answered by words alone; `mode_note` says why."""
        return self.mode_note is not None

    @property
    def mode_note(self) -> str | None:
        """Why there is no search by meaning, and what to do; None if there is."""
        if self.embedder is None:
            return f"search is by words only: {self._why_lexical}"
        if self._num_unembedded:
            return f"search is by words only: {self._num_unembedded} sources have no vectors yet; sync the index to embed them"
        return None

    async def sync(
        self,
        origin: Origin,
        *,
        name: str = "",
        exclude: Sequence[str] = (),
        urls: UrlPolicy = UrlPolicy(),
        progress: Progress | None = None,
    ) -> SyncReport:
        """Make the index mirror an origin: what is new or changed is read, and what is gone is removed.

        Args:
            origin: a folder, of which all below it is read, without hidden files; a file; a URL; a `Document`; or an iterable of files,
                URLs and documents. An index mirrors one folder, and as many other origins as have names; none touches the sources
                of another, or documents that `add` brought.
            name: of an iterable, or of a single file, URL or document, which otherwise goes by its own.
            exclude: shell patterns of relative paths or names to leave out of a folder, such as "site-packages".
            urls: what may be fetched; by default nothing that is not public.
            progress: called after each source.

        Raises:
            ConfigError: there is no such folder, or nothing in it that can be read.
            StoreError: the index mirrors another folder, or another process holds it for long; two syncs at once take turns, a source each.
        """
        if isinstance(exclude, str):
            raise ConfigError(f"exclude={exclude!r} is one string, of which each letter would be a pattern; give a list: [{exclude!r}]")
        is_folder = isinstance(origin, str | Path) and not is_url(origin) and not Path(origin).is_file()
        async with self._syncing:
            try:
                if is_folder:
                    report = await sync_folder(
                        self.store,
                        Path(str(origin)),
                        embedder=self.embedder,
                        converters=self._converters,
                        splitter=self._splitter,
                        exclude=exclude,
                        progress=progress,
                    )
                else:
                    report = await sync(
                        self.store,
                        list_collection(origin, name, urls),
                        embedder=self.embedder,
                        converters=self._converters,
                        splitter=self._splitter,
                        progress=progress,
                    )
                await self.store.settle()
                return report
            finally:
                await self._look_for_missing_vectors()

    async def add(self, documents: Iterable[Document]) -> None:
        """Index documents that no file holds; a document replaces the one of the same source."""
        async with self._syncing:
            batch: list[Cut] = []
            for item in cut_documents(documents, self._splitter, is_embedded=self.embedder is not None):
                batch.append(item)
                if len(batch) == _ADD_BATCH:
                    await self._store_batch(batch)
                    batch = []
            await self._store_batch(batch)
            await self.store.settle()
            await self._look_for_missing_vectors()

    async def search(self, q: str, k: int = 10, mode: Mode = "hybrid", where: Where | None = None) -> list[Passage]:
        """The k best passages, best first, with their scores.

        Args:
            q: a question or some words.
            k: at most so many.
            mode: "bm25" by words, "dense" by meaning, "hybrid" by both; hybrid is by words while `mode_note` says so.
            where: what the metadata of the passage's source must be, such as `{"format": "pdf", "year": {">=": 2020}}`, or
                `(F("year") >= 2020) & ~F("draft").exists()`; `tripod.filters` tells all.

        Raises:
            RequestError: an empty question, k below 1, an unknown mode, a filter that cannot be, or "dense" without vectors.
            StoreError: there is no index yet.
        """
        if not q.strip():
            raise RequestError("the query is empty; ask something", param="q")
        if any("\ud800" <= character <= "\udfff" for character in q):
            raise RequestError("the query holds half of a surrogate pair, which is no character; was it read as UTF-8?", param="q")
        if k < 1:
            raise RequestError(f"k={k} asks for nothing; give at least 1", param="k")
        if mode not in ("bm25", "dense", "hybrid"):
            raise RequestError(f'mode={mode!r} is not known; give "bm25", "dense" or "hybrid"', param="mode")
        if mode == "dense" and self.mode_note:
            raise RequestError(f'mode="dense" is not possible: {self.mode_note}', param="mode")
        vector: Vectors | None = None
        if mode != "bm25" and self.embedder is not None and not self.mode_note:
            vector = (await self.embedder.embed([q], kind="query"))[0]
        return await self.store.search(None if mode == "dense" else q, vector, k=k, where=where)

    async def count(self, words: Sequence[str]) -> list[int]:
        """For each word the number of passages that hold it, in any of its forms: what is in few of them tells most."""
        return await self.store.count(words)

    async def document(self, source: str) -> Document:
        """The text that the passages of a source were cut from, as it was when it was indexed.

        Raises:
            NotFoundError: the index has no such source.
        """
        document = await self.store.document(source)
        if document is None:
            raise NotFoundError(f"the index {printable(self.location)} has no source {source!r}", param="source")
        return document

    async def sources(self) -> list[str]:
        """The names of all sources, sorted."""
        return list(await self.store.sources())

    async def _store_batch(self, batch: Sequence[Cut]) -> None:
        for item, vectors in zip(batch, await embed(batch, self.embedder), strict=True):
            await self.store.replace(item.document, item.passages, vectors, item.state)

    async def _look_for_missing_vectors(self) -> None:
        stats = await self.store.stats()
        self._num_unembedded = stats.num_unembedded if stats is not None else 0
