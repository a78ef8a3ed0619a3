"""Makes an index mirror a folder: read what changed, and replace or remove one source at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio.to_thread
import numpy as np

from tripod.documents import Document, Passage, SourceState
from tripod.errors import ConfigError, ConversionError, MissingExtraError, StoreError
from tripod.protocols import Converter, Embedder, Store
from tripod.retrieval.converters.registry import suffix_of
from tripod.retrieval.scan import File, scan
from tripod.text.splitter import split

if TYPE_CHECKING:
    from tripod.protocols import Vectors

MAX_FILE_BYTES = 64 << 20
_BATCH_PASSAGES = 256  # embedded at once: enough to sort by length, little enough to show progress
_MTIME_GRAIN_NS = 2_000_000_000  # file systems keep times to up to two seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a sync did. Law: added + changed + unchanged + len(failed) is the number of files that were seen."""

    added: int = 0
    changed: int = 0
    removed: int = 0  # sources whose file is no longer there
    unchanged: int = 0
    failed: tuple[tuple[str, str], ...] = ()  # (source, reason); what the index held of a file that changed is removed
    ignored: Mapping[str, int] = field(default_factory=dict)  # why -> how many files and folders were not looked at

    @property
    def seen(self) -> int:
        """The files that the folder holds in a format that can be read."""
        return self.added + self.changed + self.unchanged + len(self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress:
    """How far a sync is: `done` of `total` sources that need work."""

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


def cut(document: Document, max_tokens: int) -> tuple[Passage, ...]:
    """The passages of a document, with the lines of the file that they came from."""
    passages = split(document, max_tokens=max_tokens)
    if document.lines:  # extracted text: its own lines are not the file's
        passages = [replace(passage, line=document.line_at(passage.start)) for passage in passages]
    return tuple(passages)


async def sync(
    store: Store,
    folder: Path,
    *,
    embedder: Embedder | None,
    converters: Mapping[str, Converter],
    max_tokens: int,
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
    known = await store.sources()
    _check_root(known, root)

    counts = {"added": 0, "changed": 0, "unchanged": 0}
    failed: list[tuple[str, str]] = []
    vanished: set[str] = set()

    def is_settled(file: File) -> bool:
        state = known.get(file.source)
        return (
            state is not None
            and state.root == root
            and (state.size, state.mtime_ns) == (file.size, file.mtime_ns)
            and (state.is_embedded or embedder is None)
        )

    pending = [file for file in found.files if not is_settled(file)]
    counts["unchanged"] = len(found.files) - len(pending)
    done = 0

    def finish(source: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(SyncProgress(done=done, total=len(pending), source=source))

    async def changed_sources() -> AsyncIterator[Cut]:
        for file in pending:
            state = known.get(file.source)
            try:
                result = await anyio.to_thread.run_sync(_read, file, root, state, embedder is not None, converters, max_tokens)
            except FileNotFoundError:
                vanished.add(file.source)
                finish(file.source)
                continue
            except (OSError, MissingExtraError) as error:
                failed.append((file.source, f"it cannot be read: {getattr(error, 'strerror', None) or error}"))
                finish(file.source)
                continue
            except ConversionError as error:
                failed.append((file.source, str(error)))
                if state is not None:
                    await store.remove(file.source)
                finish(file.source)
                continue
            if result is None:
                counts["unchanged"] += 1
                finish(file.source)
            else:
                yield result

    async for batch in _batches(changed_sources()):
        for item, vectors in zip(batch, await embed(batch, embedder), strict=True):
            await store.replace(item.document, item.passages, vectors, item.state)
            before = known.get(item.document.source)
            kind = "added" if before is None else "unchanged" if before.digest == item.state.digest else "changed"
            counts[kind] += 1
            finish(item.document.source)

    present = {file.source for file in found.files} - vanished
    gone = sorted(
        source for source, state in known.items() if state.root and source not in present and not source.startswith(found.unlisted)
    )
    for source in gone:
        await store.remove(source)
    return SyncReport(**counts, removed=len(gone), failed=tuple(failed), ignored=found.ignored)


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


def _read(
    file: File, root: str, state: SourceState | None, needs_vectors: bool, converters: Mapping[str, Converter], max_tokens: int
) -> Cut | None:
    """A file as passages; None if its content is what the index has."""
    if file.size > MAX_FILE_BYTES:
        raise ConversionError(f"it has {file.size} bytes, and at most {MAX_FILE_BYTES} are read; split it")
    read_at_ns = time.time_ns()
    content = file.path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if state is not None and state.digest == digest and state.root == root and (state.is_embedded or not needs_vectors):
        return None
    document = converters[suffix_of(file.source)].convert(content, file.source)
    _check_characters(document)
    # A time too fresh to tell a later change in the same instant from this one is not trusted (as in git's index).
    is_old = file.mtime_ns < read_at_ns - _MTIME_GRAIN_NS and len(content) == file.size
    new_state = SourceState(
        digest=digest, root=root, size=len(content), mtime_ns=file.mtime_ns if is_old else -1, is_embedded=needs_vectors
    )
    return Cut(document, cut(document, max_tokens), new_state)


def _check_characters(document: Document) -> None:
    try:
        for text in (document.text, document.source, document.title, *(section.title for section in document.sections)):
            text.encode()
    except UnicodeEncodeError:
        raise ConversionError("it holds half of a surrogate pair, which is no character") from None


def _check_root(known: Mapping[str, SourceState], root: str) -> None:
    """One index mirrors one folder. One that was moved is followed: then the old place is gone."""
    for other in sorted({state.root for state in known.values()} - {"", root}):
        if Path(other).is_dir():
            raise StoreError(f"the index mirrors {other}, not {root}; sync that folder, or use another index file for this one")


def cut_documents(documents: Iterable[Document], max_tokens: int, *, is_embedded: bool) -> Iterable[Cut]:
    """Documents that no file holds, with their passages; their digest is that of their text."""
    for document in documents:
        try:
            _check_characters(document)
        except ConversionError as error:
            raise ConfigError(f"{document.source!r} cannot be stored: {error}") from None
        digest = hashlib.sha256(document.text.encode()).hexdigest()
        yield Cut(document, cut(document, max_tokens), SourceState(digest=digest, is_embedded=is_embedded))
