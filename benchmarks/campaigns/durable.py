"""Kills workers of durable executions at seeded points, resumes, and asks the tool what really happened.

    python -m benchmarks.campaigns durable [--points 500] [--seed 0] [--out benchmarks/results]

The tool is a process with a store of its own. Every point runs one execution, of effects with a key, without one, that may be repeated,
and of several at once, on SQLite (even seeds) or PostgreSQL (odd ones): once unbroken, and once killed by SIGKILL one to three times,
before or after a transaction of the journal, before or after a call reached the tool, and between an effect and its record. The promise:
one effect for each key; an effect without a key is never repeated: if nobody knows whether it happened the execution stops and names it
(here one looks into the tool's store, and decides as it says); and the result at the end is that of the unbroken run.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.campaigns.durable_victim import call, victim
from benchmarks.campaigns.kill import Outcome, kill_options, run_points
from benchmarks.campaigns.kill_postgres import running_server

_ROOT = Path(__file__).parents[2]


@contextmanager
def running_tool(folder: Path) -> Iterator[int]:
    """The port of the tool."""
    command = [sys.executable, "-m", "benchmarks.campaigns.durable_tool", str(folder / "tool.db")]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as tool:
        assert tool.stdout is not None
        try:
            yield int(tool.stdout.readline())
        finally:
            tool.kill()


def run_point(location: str, port: int, seed: int) -> Outcome:
    """One execution, killed and resumed to its end.

    Args:
        location: of a journal; executions of other seeds may be in it.
        port: of the tool.
        seed: chooses the steps, and where it is killed.
    """
    generator = random.Random(seed)
    space = f"case{seed}"
    unbroken = _live(location, port, seed, f"{space}-unbroken", kill_at=0, late_s=0.0)
    assert unbroken is not None
    failures, kills, doubts = [], [], 0
    decisions: dict[str, Any] = {}
    ended = None
    for life in range(12):
        kill_at = generator.randint(1, unbroken["num_points"]) if life < generator.randint(1, 3) else 0
        ended = _live(location, port, seed, space, kill_at=kill_at, late_s=60.0 * life, **decisions)
        if ended is None:
            kills.append(kill_at)
            continue  # what was decided is in the journal, or is decided again
        decisions = {}
        if ended["state"] == "done":
            break
        assert ended["state"] == "in doubt"
        doubts += len(ended["in_doubt"])
        happened = {label: reply for label, _, reply in call(port, "list", space)}
        labels = {path: ended["labels"][path] for path in ended["in_doubt"]}
        decisions = {
            "retry": [path for path, label in labels.items() if label not in happened],
            "skip": {path: happened[label] for path, label in labels.items() if label in happened},
        }
    if ended is None or ended["state"] != "done":
        failures.append("it did not come to its end")
    elif ended["result"] != unbroken["result"]:
        failures.append(f"the result is {ended['result']}, and {unbroken['result']} where nothing was killed")
    done = [(label, bool(key)) for label, key, _ in call(port, "list", space)]
    if sorted(done) != sorted((label, bool(key)) for label, key, _ in call(port, "list", f"{space}-unbroken")):
        failures.append(f"the tool did {done}")
    return Outcome(
        seed=seed,
        start="postgres" if "://" in location else "sqlite",
        kill=f"at {', '.join(map(str, kills)) or 'none'} of {unbroken['num_points']}; {doubts} in doubt",
        was_killed=bool(kills),
        num_old=doubts,
        num_new=unbroken["num_steps"],
        failures=tuple(failures),
    )


def _live(location: str, port: int, seed: int, space: str, **options: Any) -> dict[str, Any] | None:
    """One worker, from birth to death; None if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.campaigns.durable_victim", "pydantic", "psycopg"])
    told, outcome = context.Pipe(duplex=False)
    process = context.Process(target=victim, args=(location, port, seed, space, options, outcome))
    process.start()
    outcome.close()
    try:
        found: dict[str, Any] | None = told.recv()
    except EOFError:
        found = None
    process.join(60)
    assert process.exitcode == (-signal.SIGKILL if found is None else 0), process.exitcode
    return found


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held at every point."""
    options = kill_options("durable", arguments, points=500, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="tripod-durable-") as name, running_server() as server, running_tool(Path(name)) as port:
        locations = (str(Path(name) / "journal.db"), f"{server.address}#journal")
        return run_points("durable", options, lambda seed: run_point(locations[seed % 2], port, seed))
