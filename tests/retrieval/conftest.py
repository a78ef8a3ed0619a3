"""What tests of stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.retrieval.postgres_server import running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    with running_server() as address:
        yield address
