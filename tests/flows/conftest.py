"""Where journals are kept in tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.retrieval.postgres_server import running_server

_SCHEMAS = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    with running_server() as address:
        yield address


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a journal that nobody used, in every kind of database."""
    if request.param == "postgres":
        return f"{request.getfixturevalue('postgres')}#journal{next(_SCHEMAS)}"
    return ":memory:" if request.param == "memory" else str(tmp_path / "journal.db")


@pytest.fixture(params=["sqlite", "postgres"])
def shared_location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same, where several processes may open it."""
    if request.param == "postgres":
        return f"{request.getfixturevalue('postgres')}#journal{next(_SCHEMAS)}"
    return str(tmp_path / "journal.db")
