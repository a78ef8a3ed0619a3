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
    again = tripod("bench", "serve", server.url, *asks[:2], "--prompt-tokens", "40", *asks[4:])
    assert "prefix cache" not in again.out  # none of these prompts was asked before
    again = tripod("bench", "serve", server.url, *asks[:2], "--prompt-tokens", "40", *asks[4:])
    assert "80% of the prompts' tokens came from the server's prefix cache" in again.out  # two blocks of 16 of each 40 tokens
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
    asks = (
        "--num",
        "4",
        "--prompt-tokens",
        "5",
        "--output-tokens",
        "4",
        "--repeat",
        "2",
        "--weights",
        "int8",
        "--json",
        tmp_path / "o.json",
    )
    outcome = tripod("bench", "offline", folder, *asks)
    assert outcome.code == 0, outcome.err
    assert "output tokens/s" in outcome.out
    kept = json.loads((tmp_path / "o.json").read_text())
    assert len(kept["output_tokens_per_s"]) == 1
    assert kept["weights"] == "int8"


def test_a_load_whose_requests_fail_ends_with_1(tripod: Command, server: LiveServer) -> None:
    outcome = tripod("bench", "serve", server.url + "/", "--model", "absent", "--num", "2", "--prompt-tokens", "5")
    assert outcome.code == 1
    assert "0 ok, 2 failed" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "0 requests a second is not a rate"),
        (["--sweep", "1,-2"], "-2 requests a second is not a rate"),
        (["--sweep", "1,x"], "'1,x' is not a list of rates"),
        (["--rate", "1", "--sweep", "1,2"], "give one of the two"),
        (["--same-as", "absent.json"], "--same-as absent.json cannot be read"),
        (["--plot", "picture.jpeg"], "end its name in .png"),
        (["--plot", "absent/picture.png"], "there is no folder absent"),
    ],
)
def test_a_load_that_cannot_be_reported_is_refused_before_anything_is_asked(tripod: Command, arguments: list[str], message: str) -> None:
    outcome = tripod("bench", "serve", "http://127.0.0.1:9/v1", "--model", "m", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_an_address_without_a_scheme_is_no_server(tripod: Command) -> None:
    outcome = tripod("bench", "serve", "127.0.0.1:8000/v1")
    assert outcome.code == 2
    assert "give for example http://127.0.0.1:8000/v1" in outcome.err
