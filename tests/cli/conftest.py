"""A command run as a user runs it: what it prints on either side, and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tripod.cli.app import main

HANDBOOK = Path(__file__).parents[1] / "data" / "handbook"


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, for commands in this process and in others."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def embedder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search by words, as on a machine without weights, unless the test says otherwise: loading them takes seconds a test."""
    if request.node.get_closest_marker("with_embedder") is None:
        monkeypatch.setattr("tripod.retrieval.index.find_default_embedder", lambda: (None, "this test has no embedder"))


@pytest.fixture
def handbook() -> Path:
    return HANDBOOK


@pytest.fixture
def tripod(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, captured.out, captured.err)

    return run


def python_m_tripod(*arguments: str | Path, **variables: str) -> Outcome:
    """Runs a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tripod", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
