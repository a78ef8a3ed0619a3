"""`import tripod` is cheap: every command, script and notebook pays for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "httpx", "numpy", "pydantic", "starlette", "uvicorn", "tokenizers", "rich", "typer")


def _in_fresh_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_brings_in_nothing_heavy() -> None:
    loaded = json.loads(_in_fresh_interpreter("import json, sys, tripod; print(json.dumps(sorted(sys.modules)))"))
    assert "tripod" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.alone
def test_import_takes_under_a_fifth_of_a_second() -> None:
    code = "import time; t = time.perf_counter(); import tripod; print(time.perf_counter() - t)"
    assert min(float(_in_fresh_interpreter(code)) for _ in range(3)) < 0.2


def test_the_api_of_agents_takes_under_a_fifth_of_a_second_and_no_client_or_engine() -> None:
    code = "import json, sys, time; t = time.process_time(); from tripod import Agent, Model, tool; print(time.process_time() - t)"
    assert min(float(_in_fresh_interpreter(code)) for _ in range(3)) < 0.2  # of one core's time: other tests run beside this one
    loaded = json.loads(_in_fresh_interpreter(f"{code.replace('print', 'str')}; print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "httpx", "numpy", "pydantic", "starlette", "mcp", "tripod.engine", "tripod.retrieval"} & set(loaded)


def test_an_unknown_name_is_refused_with_the_public_ones() -> None:
    import tripod

    with pytest.raises(AttributeError, match=r"no attribute 'Modle'; public names: .*SamplingParams"):
        tripod.Modle  # noqa: B018


def test_every_public_name_can_be_loaded() -> None:
    import tripod

    for name in tripod.__all__:
        assert getattr(tripod, name).__module__.startswith("tripod.")
