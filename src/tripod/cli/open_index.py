"""An index file, or a folder whose index is kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tripod.cli.progress import sync_with_progress
from tripod.cli.terminal import note
from tripod.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from tripod.protocols import Converter
    from tripod.retrieval.index import Index


def cached_index_path(folder: Path) -> Path:
    """Where the index of a folder is kept: in the user's cache, under the folder's name and a digest of its path."""
    from platformdirs import user_cache_path

    resolved = folder.resolve()
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:12]
    return user_cache_path("tripod", appauthor=False) / "indexes" / f"{resolved.name or 'root'}-{digest}.db"


@asynccontextmanager
async def open_index(target: str | Path) -> AsyncIterator[Index]:
    """Open an index file, or one in PostgreSQL, as it is; bring the cached index of a folder up to date first.

    Nothing is written into the folder.

    Raises:
        ConfigError: there is neither file nor folder, or the folder holds nothing that can be read.
        StoreError: the file is not an index, or one made by another embedder.
    """
    from tripod.retrieval.index import Index
    from tripod.retrieval.open_store import is_file

    path = Path(target)
    if is_file(str(target)) and path.is_dir():
        async with open_cached_index(cached_index_path(path)) as index:
            await sync_with_progress(index, path)
            yield index
        return
    if is_file(str(target)) and not path.exists():
        raise ConfigError(f"there is no file or folder {str(path)!r}; give a folder of documents, or an index made by 'tripod index'")
    async with Index(target) as index:
        yield index


@asynccontextmanager
async def open_cached_index(path: Path, *, converters: Sequence[Converter] | None = None) -> AsyncIterator[Index]:
    """An index that lives in the cache. One that cannot be used any more is made anew, as the next sync fills it again.

    Raises:
        ConfigError: the cache cannot be written.
    """
    from tripod.retrieval.index import Index

    def index_at_path() -> Index:
        return Index(path, converters=converters)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the index cannot be kept in {path.parent}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written, "
            "or say where: tripod index FOLDER --into KB.DB"
        ) from None
    note(f"index: {path}")
    async with AsyncExitStack() as opened:
        try:
            index = await opened.enter_async_context(index_at_path())
        except StoreError as error:
            note(f"making the cached index anew: {error}")
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            index = await opened.enter_async_context(index_at_path())
        yield index
