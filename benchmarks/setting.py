"""Under what a benchmark ran: written beside every raw result, so that a number can be judged and repeated."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def setting(program: str, packages: Sequence[str] = ()) -> dict[str, object]:
    """Command, commit, date, processor and versions.

    Args:
        program: the module that was run, such as `benchmarks.embedding`.
        packages: distributions whose versions count; one that is absent is given as None.
    """
    return {
        "command": " ".join([f"python -m {program}", *map(_without_folders, sys.argv[1:])]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": processor(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _without_folders(argument: str) -> str:
    """Paths of one machine mean nothing on another; `vllm=FOLDER/python` keeps its name."""
    name, equals, value = argument.partition("=")
    return f"{name}=" * bool(equals) + Path(value if equals else argument).name if "/" in argument else argument


def commit() -> str:
    """The commit of the checkout, marked where files differ from it; empty outside of one."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()


def keep(name: str, content: Mapping[str, object]) -> Path:
    """Write a raw result to benchmarks/results/NAME-DATE.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def processor() -> str:
    """The processor's name as the system gives it."""
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
