"""One engine and one server for each test module."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import open_tiny, write_tiny
from tripod.engine.engine import Engine, EngineConfig
from tripod.serving.app import build_app


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[Engine]:
    engine = open_tiny(tiny_folder, EngineConfig())
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[LiveServer]:
    with live_server(build_app(engine)) as server:
        yield server
