"""Files and folders that appear when they are whole, so that who reads, and who comes after a crash, finds the old or the new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

PARTIAL = ".partial-"  # begins the names of what is being written


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its name when the block ends; when it ends by an exception, nothing of it stays.

    Several processes may write the same file at once: each writes its own, and the last to end gives the name. It is not flushed to the
    disk, so a power cut may leave it empty: for what can be made again. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("xb") as stream:
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def durable_file(path: Path) -> Iterator[IO[bytes]]:
    """An atomic file that is on the disk, with its name, when the block has ended: even a power cut leaves the old or the new."""
    with atomic_file(path) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(path.parent)


@contextmanager
def durable_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends; its files must be flushed by who writes them (`write_flushed`).

    Raises:
        OSError: there is already something of this name, when the block ends.
    """
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_folder(partial)
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file whose folder nobody reads yet, and flush it to the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f"{PARTIAL}{path.name}-{uuid4().hex}")
