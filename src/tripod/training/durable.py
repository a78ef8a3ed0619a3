"""Files and folders that appear when they are whole and on the disk, so that a crash, even of the power, leaves the old or the new."""

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
def durable_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its name when the block ends; when it ends by an exception, nothing of it stays."""
    partial = path.with_name(f"{PARTIAL}{path.name}-{uuid4().hex}")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def durable_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends; its files must be flushed by who writes them.

    Raises:
        OSError: there is already something of this name, when the block ends.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}-{uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_folder(partial)
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
