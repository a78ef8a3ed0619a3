"""Where sources come from: the files of a folder, named files, web pages, or documents that a program made.

An origin is what one sync mirrors: what it names is added or brought up to date, what it names no more is removed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from tripod.documents import Document, SourceState
from tripod.errors import ConfigError, ConversionError
from tripod.retrieval.converters.registry import suffix_of
from tripod.retrieval.fetch import UrlPolicy, fetch
from tripod.retrieval.scan import File, Scan

COLLECTION = "collection:"  # what the root of an origin that is no folder begins with
MAX_FILE_BYTES = 64 << 20
_MTIME_GRAIN_NS = 2_000_000_000  # file systems keep times to up to two seconds

Origin: TypeAlias = str | Path | Document | Iterable[str | Path | Document]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a source holds now: bytes for the converter of a suffix, or a document that needs none."""

    digest: str  # sha256
    size: int = -1  # bytes; -1 where there is no file
    mtime_ns: int = -1  # when it was changed last; -1 if that must not be trusted
    content: bytes = b""
    suffix: str = ""  # such as ".md"
    document: Document | None = None


class Item(Protocol):
    """One source of an origin."""

    @property
    def source(self) -> str: ...

    def is_settled(self, state: SourceState) -> bool: ...  # what the index has of it is known to be what it holds, without reading it

    def read(self, state: SourceState | None) -> Content | None: ...  # None if it holds what the index has; blocks


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file below a folder, or one that was named."""

    file: File
    is_named: bool = False  # then it must be there

    @property
    def source(self) -> str:
        return self.file.source

    def is_settled(self, state: SourceState) -> bool:
        return (state.size, state.mtime_ns) == (self.file.size, self.file.mtime_ns)

    def read(self, state: SourceState | None) -> Content | None:
        if self.file.size > MAX_FILE_BYTES:
            raise ConversionError(f"it has {self.file.size} bytes, and at most {MAX_FILE_BYTES} are read; split it")
        read_at_ns = time.time_ns()
        try:
            content = self.file.path.read_bytes()
        except FileNotFoundError as error:
            if self.is_named:
                raise OSError(error.strerror) from None  # with its number it would be a FileNotFoundError again
            raise
        # A time too fresh to tell a later change in the same instant from this one is not trusted (as in git's index).
        is_old = self.file.mtime_ns < read_at_ns - _MTIME_GRAIN_NS and len(content) == self.file.size
        return Content(
            digest=hashlib.sha256(content).hexdigest(),
            size=len(content),
            mtime_ns=self.file.mtime_ns if is_old else -1,
            content=content,
            suffix=suffix_of(self.file.source),
        )


@dataclass(frozen=True, slots=True)
class UrlItem:
    """A web page."""

    source: str
    policy: UrlPolicy

    def is_settled(self, state: SourceState) -> bool:
        return False  # only its server knows

    def read(self, state: SourceState | None) -> Content | None:
        page = fetch(self.source, self.policy, unless_changed_since_ns=state.mtime_ns if state else -1)
        if page is None:
            return None
        digest = hashlib.sha256(page.content).hexdigest()
        return Content(digest=digest, size=len(page.content), mtime_ns=page.changed_at_ns, content=page.content, suffix=page.suffix)


@dataclass(frozen=True, slots=True)
class DocumentItem:
    """A document that a program made."""

    document: Document

    @property
    def source(self) -> str:
        return self.document.source

    def is_settled(self, state: SourceState) -> bool:
        return False  # telling takes no reading

    def read(self, state: SourceState | None) -> Content | None:
        document = self.document
        spans = [[astuple(span) for span in kind] for kind in (document.sections, document.pages, document.lines)]
        whole = json.dumps([document.text, document.title, spans, dict(document.metadata)], sort_keys=True)
        return Content(digest=hashlib.sha256(whole.encode()).hexdigest(), document=document)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What an origin names, and what a report tells of it."""

    root: str  # the folder's path, or the collection's name: what remembers which sources are the origin's
    items: Iterable[Item]  # a list, or an iterator whose length nobody knows yet
    unlisted: tuple[str, ...] = ()  # beginnings of sources that could not be looked at
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return not self.root.startswith(COLLECTION)

    def holds(self, state: SourceState) -> bool:
        """Whether a source of the index belongs to this origin; a folder that was moved is the same folder."""
        if self.is_folder:
            return bool(state.root) and not state.root.startswith(COLLECTION)
        return state.root == self.root


def list_folder(found: Scan, root: str) -> Listing:
    """The files of a folder that was looked through."""
    return Listing(root=root, items=[FileItem(file) for file in found.files], unlisted=found.unlisted, ignored=found.ignored)


def list_collection(origin: Origin, name: str, policy: UrlPolicy) -> Listing:
    """What a program named: one file, URL or document, or many. One alone is a collection of its own name.

    Raises:
        ConfigError: something that is none of these.
    """
    if isinstance(origin, str | Path | Document):
        item = _item(origin, policy)
        return Listing(root=f"{COLLECTION}{name or item.source}", items=[item])
    items: Iterator[Item] = (_item(given, policy) for given in origin)
    return Listing(root=f"{COLLECTION}{name}", items=list(items) if isinstance(origin, list | tuple) else items)


def is_url(origin: object) -> bool:
    return isinstance(origin, str) and origin.lower().startswith(("http://", "https://"))


def _item(given: object, policy: UrlPolicy) -> Item:
    if isinstance(given, Document):
        return DocumentItem(given)
    if isinstance(given, str) and is_url(given):
        return UrlItem(given, policy)
    if not isinstance(given, str | Path):
        raise ConfigError(f"{given!r} is no source; give paths, URLs (http://, https://) or Documents")
    path = Path(given)
    try:
        stat = path.stat()
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
    except OSError:
        size, mtime_ns = -1, -1  # reading it will say why not
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder among files; sync a folder alone, or list its files")
    return FileItem(File(path.as_posix(), path, size, mtime_ns), is_named=True)
