"""What holds for every command."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command, python_m_tripod

HEAVY = ("torch", "numpy", "httpx", "starlette", "pydantic", "tripod.retrieval", "tripod.engine", "rich.progress")


def test_help_names_every_command_and_is_quick() -> None:
    outcome = python_m_tripod("--help")
    assert outcome.code == 0
    for command in ("ask", "index", "search", "generate", "chat", "serve", "train", "data", "tokenizer", "doctor", "demo"):
        assert f" {command} " in outcome.out
    # A machine may have a slow moment: then beside the library that prints it.
    # Of one core's time, which is what a user waits for on a machine with a free core; the wall clock would measure the other tests too.
    took_s = least_cpu_seconds("-m", "tripod", "--help")
    assert took_s < 0.3 or took_s < 2.5 * least_cpu_seconds("-c", "import typer.main, typer.rich_utils")


def least_cpu_seconds(*arguments: str) -> float:
    seconds: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, tripod.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_an_error_is_one_line_on_stderr() -> None:
    outcome = python_m_tripod("search", "missing.db", "anything")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines() == [
        "error: there is no file or folder 'missing.db'; give a folder of documents, or an index made by 'tripod index'"
    ]


def test_the_traceback_is_there_for_those_who_ask() -> None:
    outcome = python_m_tripod("search", "missing.db", "anything", TRIPOD_DEBUG="1")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    """As in `tripod ... | head`: with more output than a pipe holds, nothing is said on stderr."""
    code = (
        "import tripod.cli.app, tripod.cli.doctor as doctor\n"
        "doctor.findings = lambda: {'title': {'name': 'z' * 2**20}}\n"
        f"tripod.cli.app.main({arguments!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_version_is_printed(tripod: Command) -> None:
    from tripod import __version__

    assert tripod("--version").out == f"tripod {__version__}\n"


def test_an_unknown_command_is_a_wrong_call(tripod: Command) -> None:
    assert tripod("frobnicate").code == 2


@pytest.mark.parametrize(
    ("arguments", "package"), [(["generate", "model", "Once"], "torch"), (["search", "KB", "dome"], ""), (["ask", "KB", "dome?"], "")]
)
def test_without_the_packages_of_the_engine_the_rest_works_and_says_so(
    handbook: Path, tmp_path: Path, arguments: list[str], package: str
) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'safetensors', 'tokenizers'): raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name in ('torch', 'safetensors', 'tokenizers') else find(name, package)\n"
        "from tripod.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [str(handbook) if argument == "KB" else argument for argument in arguments]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120)
    if package:
        assert (done.returncode, done.stdout) == (2, "")
        assert f"needs the package '{package}'" in done.stderr
        assert "pip install 'tripod[engine]'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "by words only: torch is not installed" in done.stderr


def test_what_is_not_the_calls_fault_ends_with_1(tripod: Command, handbook: Path) -> None:
    outcome = tripod("ask", handbook, "When does the dome close?", "--model", "http://127.0.0.1:9/v1#absent")
    assert outcome.code == 1
    assert "no server answers" in outcome.err
