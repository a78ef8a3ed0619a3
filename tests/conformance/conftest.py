"""Peers' own test suites, run on our stores through adapters. Their packages come with the extra `conformance`, which `dev` includes."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tripod
from tests.retrieval.postgres_server import fresh_index, running_server

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when Haystack is imported
os.environ["LANGSMITH_TRACING"] = "false"


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("asyncio", "benchmark", "vcr"):
        config.addinivalue_line("markers", f"{marker}: used by peers' suites")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests that are coroutines run on our own bridge, so that no plugin for them is needed."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    tripod.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
    return True


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with running_server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of an index that nobody used, in each of the stores."""
    if request.param == "postgresql":
        yield fresh_index(request.getfixturevalue("postgres"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder) / "kb.db")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", metavar="FOLDER", help="a real instruct model, of which LangChain's chat suite asks all its questions")
