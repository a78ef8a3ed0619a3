"""Files that appear when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes its name when the block ends; when it ends by an exception, nothing of it stays.

    Several processes may write the same file at once: each writes its own, and the last to end gives the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
