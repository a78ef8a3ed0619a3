"""Makes an index mirror an origin: read what changed, and replace or remove one source at a time.

Sources are read, converted and cut ahead of the embedder, several at once, and stored in order; a few of them are in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio
import anyio.to_thread
import numpy as np

from tripod.documents import Document, Passage, SourceState
from tripod.errors import ConfigError, ConversionError, MissingExtraError, StoreError
from tripod.protocols import Converter, Embedder, Splitter, Store
from tripod.retrieval.ahead import map_ahead
from tripod.retrieval.converters.isolated import Isolated, Workers
from tripod.retrieval.converters.registry import suffix_of
from tripod.retrieval.origins import COLLECTION, Content, Item, Listing, UrlItem, list_folder
from tripod.retrieval.scan import scan

if TYPE_CHECKING:
    from tripod.protocols import Vectors

_BATCH_PASSAGES = 256  # embedded at once: enough to sort by length, little enough to show progress
_MAX_WORKERS = 4  # processes that convert
_FETCHES = 8  # pages that are waited for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a sync did. Law: added + changed + unchanged + len(failed) is the number of sources that were seen."""

    added: int = 0
    changed: int = 0
    removed: int = 0  # sources whose file is no longer there, or which the origin names no more
    unchanged: int = 0
    failed: tuple[tuple[str, str], ...] = ()  # (source, reason); what the index held of a file that changed is removed
    ignored: Mapping[str, int] = field(default_factory=dict)  # why -> how many files and folders were not looked at

    @property
    def seen(self) -> int:
        """The sources that the origin holds in a format that can be read."""
        return self.added + self.changed + self.unchanged + len(self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress:
    """How far a sync is: `done` of `total` sources that need work; of an iterator, of those that it gave so far."""

    done: int
    total: int
    source: str  # the one that was just finished


Progress: TypeAlias = Callable[[SyncProgress], None]


@dataclass(frozen=True, slots=True)
class Cut:
    """A document with its passages, ready to be embedded and stored."""

    document: Document
    passages: tuple[Passage, ...]
    state: SourceState


@dataclass(frozen=True, slots=True)
class Unread:
    """A source that gave no passages: it is what the index has, has vanished, or failed."""

    source: str
    reason: str = ""  # why it failed
    is_vanished: bool = False
    is_dropped: bool = False  # what the index has of it is not what it holds any more
    touched: SourceState | None = None  # it is what the index has, and this is what tells so the next time without a look


@dataclass(frozen=True, slots=True)
class Reading:
    """How sources become passages: the settings of one sync."""

    converters: Mapping[str, Converter]
    splitter: Splitter
    needs_vectors: bool
    known: Mapping[str, SourceState]
    root: str
    workers: Workers = field(default_factory=lambda: Workers(_num_workers()))
    here: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))  # threads of Python do not convert side by side
    there: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_num_workers()))
    waiting: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_FETCHES))

    def is_current(self, state: SourceState) -> bool:
        """Whether nothing but the source's content could ask for work."""
        return state.root == self.root and (state.is_embedded or not self.needs_vectors)

    def is_settled(self, item: Item) -> bool:
        state = self.known.get(item.source)
        return state is not None and self.is_current(state) and item.is_settled(state)

    async def read(self, item: Item) -> Cut | Unread:
        """A source as passages, or why not. Errors of one source are values: the others go on."""
        try:
            return await anyio.to_thread.run_sync(self._read, item, limiter=self._limiter(item))
        except FileNotFoundError:
            return Unread(item.source, is_vanished=True)
        except (OSError, MissingExtraError) as error:
            return Unread(item.source, f"it cannot be read: {getattr(error, 'strerror', None) or error}")
        except ConversionError as error:
            return Unread(item.source, str(error), is_dropped=True)

    def _limiter(self, item: Item) -> anyio.CapacityLimiter:
        if isinstance(item, UrlItem):
            return self.waiting
        return self.there if isinstance(self.converters.get(suffix_of(item.source)), Isolated) else self.here

    def _read(self, item: Item) -> Cut | Unread:
        state = self.known.get(item.source)
        current = state if state is not None and self.is_current(state) else None
        content = item.read(current)
        if content is None:
            return Unread(item.source)
        if current is not None and current.digest == content.digest:
            seen = replace(current, size=content.size, mtime_ns=content.mtime_ns)
            return Unread(item.source, touched=seen if content.mtime_ns >= 0 and seen != current else None)
        return self._cut(content.document or self._convert(content, item.source), content)

    def _convert(self, content: Content, source: str) -> Document:
        converter = self.converters.get(content.suffix)
        if converter is None:
            raise ConversionError(f"files of the format {content.suffix or 'without a suffix'} are not read")
        if isinstance(converter, Isolated):
            return self.workers.convert(converter, content.content, source)
        return converter.convert(content.content, source)

    def _cut(self, document: Document, content: Content) -> Cut:
        check_characters(document)
        state = SourceState(
            digest=content.digest, root=self.root, size=content.size, mtime_ns=content.mtime_ns, is_embedded=self.needs_vectors
        )
        return Cut(document, tuple(self.splitter.split(document)), state)


async def sync_folder(
    store: Store,
    folder: Path,
    *,
    embedder: Embedder | None,
    converters: Mapping[str, Converter],
    splitter: Splitter,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> SyncReport:
    """Make the store hold what the folder's files say now. Interrupted at any point, the next sync completes it.

    A file is read again if its size or time changed, and replaced if its sha256 did. A file that cannot be converted is
    listed as failed; the old version's passages go, because the file no longer says what they quote. A file or folder that
    cannot be read at all (permissions, a network disk, a package that is not installed) is listed too, and keeps what the index has of it.

    Raises:
        ConfigError: no such folder, a path that is not UTF-8, or not one file in it that can be read; an index is not emptied because a
            disk is not mounted.
        StoreError: the index mirrors another folder, which still exists.
    """
    root = str(folder.resolve())
    if root.encode(errors="replace").decode() != root:
        raise ConfigError(f"the path {root!r} is not UTF-8, and an index could not remember it; rename the folder")
    found = await anyio.to_thread.run_sync(lambda: scan(folder, suffixes=converters, exclude=exclude))
    if not found.files:
        ignored = ", ".join(f"{reason}: {count}" for reason, count in found.ignored.items()) or "it is empty"
        raise ConfigError(f"{str(folder)!r} holds no document ({ignored}); these are read: {', '.join(sorted(converters))}")
    _check_root(await store.sources(), root)
    listing = list_folder(found, root)
    return await sync(store, listing, embedder=embedder, converters=converters, splitter=splitter, progress=progress)


async def sync(
    store: Store,
    listing: Listing,
    *,
    embedder: Embedder | None,
    converters: Mapping[str, Converter],
    splitter: Splitter,
    progress: Progress | None = None,
) -> SyncReport:
    """Make the store hold what an origin names, as it is now.

    Raises:
        StoreError: a source has the name of one that belongs to another origin.
    """
    known = await store.sources()
    reading = Reading(converters=converters, splitter=splitter, needs_vectors=embedder is not None, known=known, root=listing.root)
    counts = {"added": 0, "changed": 0, "unchanged": 0}
    failed: list[tuple[str, str]] = []
    present: set[str] = set()
    vanished: set[str] = set()
    num_done = num_drawn = 0

    def drawn() -> Iterator[Item]:
        """The items that need a look."""
        nonlocal num_drawn
        for item in listing.items:
            if item.source in present:
                failed.append((item.source, "it is named twice"))
                continue
            present.add(item.source)
            other = known.get(item.source)
            if other is not None and not listing.holds(other) and not (listing.is_folder and not other.root):
                raise StoreError(f"{item.source!r} belongs to {other.root or 'the documents that were added'}; name one of them otherwise")
            if reading.is_settled(item):
                counts["unchanged"] += 1
            else:
                num_drawn += 1
                yield item

    def finish(source: str) -> None:
        nonlocal num_done
        num_done += 1
        if progress is not None:
            progress(SyncProgress(done=num_done, total=num_drawn, source=source))

    async def readable(results: AsyncIterator[Cut | Unread]) -> AsyncIterator[Cut]:
        async for result in results:
            if isinstance(result, Cut):
                yield result
                continue
            if result.reason:
                failed.append((result.source, result.reason))
                if result.is_dropped and result.source in known:
                    await store.remove(result.source)
            elif result.is_vanished:
                vanished.add(result.source)
            else:
                counts["unchanged"] += 1
                if result.touched is not None and (stored := await store.read(result.source)) is not None:
                    await store.replace(stored.document, stored.passages, stored.vectors, result.touched)
            finish(result.source)

    items = list(drawn()) if isinstance(listing.items, list) else drawn()
    async with map_ahead(reading.read, items, ahead=_num_workers() + 2) as results:
        try:
            async for batch in _batches(readable(results)):
                for item, vectors in zip(batch, await embed(batch, embedder), strict=True):
                    await store.replace(item.document, item.passages, vectors, item.state)
                    before = known.get(item.document.source)
                    kind = "added" if before is None else "unchanged" if before.digest == item.state.digest else "changed"
                    counts[kind] += 1
                    finish(item.document.source)
        finally:
            reading.workers.close()  # those that are at work as well, if the sync was ended

    gone = sorted(
        source
        for source, state in known.items()
        if listing.holds(state) and source not in present - vanished and not source.startswith(listing.unlisted)
    )
    for source in gone:
        await store.remove(source)
    return SyncReport(**counts, removed=len(gone), failed=tuple(failed), ignored=listing.ignored)


async def embed(batch: Sequence[Cut], embedder: Embedder | None) -> list[Vectors | None]:
    """The vectors of each item's passages; None for each without an embedder."""
    if embedder is None:
        return [None] * len(batch)
    texts = [embedded_text(passage) for item in batch for passage in item.passages]
    vectors = await embedder.embed(texts, kind="passage") if texts else np.zeros((0, embedder.dim), dtype=np.float32)
    parts: list[Vectors | None] = []
    start = 0
    for item in batch:
        parts.append(vectors[start : start + len(item.passages)])
        start += len(item.passages)
    return parts


def embedded_text(passage: Passage) -> str:
    """What the embedder reads: the section's title says what a passage from its middle is about."""
    return f"{passage.section}\n{passage.text}" if passage.section else passage.text


async def _batches(items: AsyncIterator[Cut]) -> AsyncIterator[list[Cut]]:
    """Whole sources, together just above `_BATCH_PASSAGES` passages; a source without any takes up memory too, and counts as one."""
    batch: list[Cut] = []
    size = 0
    async for item in items:
        batch.append(item)
        size += max(1, len(item.passages))
        if size >= _BATCH_PASSAGES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _num_workers() -> int:
    """As many processes as this one may use processors, and not more than a few."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(_MAX_WORKERS, len(affinity(0)) if affinity else os.cpu_count() or 1)


def check_characters(document: Document) -> None:
    """
    Raises:
        ConversionError: half of a surrogate pair.
    """
    try:
        for text in (document.text, document.source, document.title, *(section.title for section in document.sections)):
            text.encode()
    except UnicodeEncodeError:
        raise ConversionError("it holds half of a surrogate pair, which is no character") from None


def _check_root(known: Mapping[str, SourceState], root: str) -> None:
    """One index mirrors one folder. One that was moved is followed: then the old place is gone."""
    for other in sorted({state.root for state in known.values()} - {"", root}):
        if not other.startswith(COLLECTION) and Path(other).is_dir():
            raise StoreError(f"the index mirrors {other}, not {root}; sync that folder, or use another index file for this one")


def cut_documents(documents: Iterable[Document], splitter: Splitter, *, is_embedded: bool) -> Iterable[Cut]:
    """Documents that no file holds, with their passages; their digest is that of their text."""
    for document in documents:
        try:
            check_characters(document)
        except ConversionError as error:
            raise ConfigError(f"{document.source!r} cannot be stored: {error}") from None
        digest = hashlib.sha256(document.text.encode()).hexdigest()
        yield Cut(document, tuple(splitter.split(document)), SourceState(digest=digest, is_embedded=is_embedded))
