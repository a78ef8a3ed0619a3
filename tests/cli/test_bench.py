"""`tripod bench` from the outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command

pytest.importorskip("torch")
pytest.importorskip("uvicorn")

from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import open_tiny, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    import asyncio

    from tripod.engine.engine import EngineConfig
    from tripod.serving.app import build_app

    engine = open_tiny(folder, EngineConfig())
    with live_server(build_app(engine)) as server:
        yield server
    asyncio.run(engine.aclose())


def test_a_server_is_loaded_and_its_outputs_are_compared_with_another_run(tripod: Command, server: LiveServer, tmp_path: Path) -> None:
    asks = ("--num", "8", "--prompt-tokens", "5", "--output-tokens", "4", "--vocab-size", "200")
    first = tripod("bench", "serve", server.url, *asks, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert first.code == 0, first.err
    assert "8 requests in" in first.out
    assert "8 ok" in first.out
    kept = json.loads((tmp_path / "a.json").read_text())
    assert len(kept["requests"]) == 8
    assert all(request["num_output_tokens"] == 4 for request in kept["requests"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    sweep = tripod("bench", "serve", server.url, *asks, "--sweep", "50,100", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png")
    assert sweep.code == 0, sweep.err
    assert {run["output_digest"] for run in json.loads((tmp_path / "b.json").read_text())["runs"]} == {kept["runs"][0]["output_digest"]}
    assert tripod("bench", "serve", server.url, *asks, "--rate", "100", "--same-as", tmp_path / "a.json").code == 0
    other = tripod("bench", "serve", server.url, *asks, "--seed", "1", "--same-as", tmp_path / "a.json")
    assert other.code == 1
    assert "outputs differ" in other.err


def test_a_server_that_is_not_there_is_named(tripod: Command) -> None:
    outcome = tripod("bench", "serve", "http://127.0.0.1:9/v1")
    assert outcome.code == 2
    assert "is the server up?" in outcome.err


def test_the_engine_alone_is_measured(tripod: Command, folder: Path, tmp_path: Path) -> None:
    asks = ("--num", "4", "--prompt-tokens", "5", "--output-tokens", "4", "--repeat", "2", "--json", tmp_path / "o.json")
    outcome = tripod("bench", "offline", folder, *asks)
    assert outcome.code == 0, outcome.err
    assert "output tokens/s" in outcome.out
    assert len(json.loads((tmp_path / "o.json").read_text())["output_tokens_per_s"]) == 1
