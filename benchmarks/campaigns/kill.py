"""Kills a sync at seeded points, syncs again, and compares with an index that was built without a crash.

    python -m benchmarks.campaigns kill [--points 60] [--seed 0] [--out benchmarks/results]

Two of three points kill right before one SQL statement, chosen by the seed among all that the sync runs; the third kills after a
delay chosen by the seed, wherever the process is then. Half of the points build a new index, half update one (files added,
changed and removed). The promise: after the kill every source is in its old or in its new state, wholly; and after the next
sync, passages, vectors, words and search results equal those of an index that never saw a crash.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias, get_args

import tripod
from benchmarks.campaigns.hash_embedder import HashEmbedder
from tripod.retrieval.index import Index, Mode

NUM_FILES = 40
QUERIES = ("river stone", "harbour", "lantern and thread", "copper meadow signal", "winter orchard")
_WORDS = """
    river stone lantern copper meadow signal harbour thread winter orchard engine violet mirror candle forest anchor
    ladder summer pepper marble falcon silver garden window bridge cotton hammer island needle ribbon
    """.split()  # noqa: SIM905 - a list of words is read as words

Rows: TypeAlias = list[tuple[object, ...]]
Contents: TypeAlias = Mapping[str, Rows]  # source -> its digest and its passages with their vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One point of the campaign."""

    seed: int
    start: str  # "new" index or "update" of one; or what kind of database
    kill: str  # where it was killed
    was_killed: bool  # a delay may be longer than the sync
    num_old: int  # sources in their old state after the kill; of an execution, its effects that were in doubt
    num_new: int  # sources in their new state; of an execution, its steps
    failures: tuple[str, ...]  # empty if the promise held


def run_point(seed: int) -> Outcome:
    """One kill, with everything around it. Deterministic but for the delays."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tripod-kill-") as name:
        work = Path(name)
        folder, database, clean, dry = work / "documents", work / "kb.db", work / "clean.db", work / "dry.db"
        folder.mkdir()
        write_files(folder, generator)
        is_update = seed % 2 == 1
        before: Contents = {}
        if is_update:
            _sync(database, folder)
            before = contents(database)
            change_files(folder, generator)
            _copy_database(database, dry)
        _sync(clean, folder)
        after = contents(clean)

        victim = _ready_victim(dry, folder, 0)
        started = time.monotonic()
        num_statements = int(victim.communicate(timeout=120)[0])
        duration_s = time.monotonic() - started
        if seed % 3 == 2:
            delay_s = generator.random() * duration_s
            kill = f"after {delay_s:.3f} s of about {duration_s:.3f}"
            victim = _ready_victim(database, folder, 0)
            try:
                victim.communicate(timeout=delay_s)
            except subprocess.TimeoutExpired:
                victim.kill()
                victim.communicate()
        else:
            statement = generator.randint(1, num_statements)
            kill = f"before statement {statement} of {num_statements}"
            victim = _ready_victim(database, folder, statement)
            victim.communicate(timeout=120)
        was_killed = victim.returncode == -signal.SIGKILL

        crashed = contents(database)
        half = [source for source, rows in crashed.items() if rows not in (before.get(source), after.get(source))]
        failures = [f"{source} is half there after the kill" for source in half]
        failures += [f"{source} was lost by the kill" for source in before if source in after and source not in crashed]
        _sync(database, folder)
        failures += _differences(database, clean)
        num_new = sum(rows == after.get(source) for source, rows in crashed.items())
        return Outcome(
            seed=seed,
            start="update" if is_update else "new",
            kill=kill,
            was_killed=was_killed,
            num_old=len(crashed) - num_new,
            num_new=num_new,
            failures=tuple(failures),
        )


def write_files(folder: Path, generator: random.Random) -> None:
    """A folder of small documents in five formats."""
    for i in range(NUM_FILES):
        _write(folder, i, generator)


def change_files(folder: Path, generator: random.Random) -> None:
    """A quarter of the files changes, a sixth goes, as many come."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    generator.shuffle(files)
    for path in files[: NUM_FILES // 6]:
        path.unlink()
    for path in files[NUM_FILES // 6 : NUM_FILES // 6 + NUM_FILES // 4]:
        path.write_bytes(path.read_bytes() + f"\n{prose(generator, 30)}\n".encode())
    for i in range(NUM_FILES, NUM_FILES + NUM_FILES // 6):
        _write(folder, i, generator)


def _write(folder: Path, i: int, generator: random.Random) -> None:
    title, body = prose(generator, 3), "\n\n".join(prose(generator, 60) for _ in range(generator.randint(1, 8)))
    suffix, text = [
        (".txt", body),
        (".md", f"# {title}\n\n{body}\n\n## More\n\n{prose(generator, 40)}\n"),
        (".rst", f"{title}\n{'=' * len(title)}\n\n{body}\n"),
        (".html", f"<title>{title}</title><h1>{title}</h1><p>{body.replace(chr(10) * 2, '</p><p>')}</p>"),
        (".md", f"{title}\n===\n\n{body}\n"),
    ][i % 5]
    path = folder / f"part{i % 3}" / f"file{i:03}{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def prose(generator: random.Random, num_words: int) -> str:
    return " ".join(generator.choices(_WORDS, k=num_words)).capitalize() + "."


def contents(database: Path) -> Contents:
    """What an index holds, read by plain SQL; empty where there is none yet."""
    if not database.exists():
        return {}
    connection = sqlite3.connect(database)
    try:
        if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'sources'").fetchone() == (0,):
            return {}
        held: dict[str, Rows] = {}
        for source, *row in connection.execute(
            "SELECT source, digest, sources.text, spans, metadata, is_embedded, start, end, passages.section, page, line, vector, "
            "words.section, words.text FROM sources LEFT JOIN passages ON source_id = sources.id "
            "LEFT JOIN words ON words.rowid = passages.id ORDER BY source, start"
        ):
            held.setdefault(source, []).append(tuple(row))
        return held
    finally:
        connection.close()


def _differences(database: Path, clean: Path) -> list[str]:
    failures: list[str] = []
    if contents(database) != contents(clean):
        failures.append("passages or vectors differ from those of an index without a crash")
    connection = sqlite3.connect(database)
    try:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            failures.append("SQLite's integrity check fails")
        if connection.execute("SELECT count(*) FROM words").fetchone() != connection.execute("SELECT count(*) FROM passages").fetchone():
            failures.append("the words of a passage are missing, or left over")
        connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        failures.append(f"the words' integrity check fails: {error}")
    finally:
        connection.close()
    if tripod.run(_answers(database)) != tripod.run(_answers(clean)):
        failures.append("search results differ from those of an index without a crash")
    return failures


async def _answers(database: Path) -> list[object]:
    async with Index(database, embedder=HashEmbedder()) as index:
        return [await index.search(query, 10, mode) for query in QUERIES for mode in get_args(Mode)]


def _sync(database: Path, folder: Path) -> None:
    async def sync() -> None:
        async with Index(database, embedder=HashEmbedder()) as index:
            report = await index.sync(folder)
        assert not report.failed, report.failed

    tripod.run(sync())


def _copy_database(database: Path, copy: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        if database.with_name(database.name + suffix).exists():
            shutil.copy(database.with_name(database.name + suffix), copy.with_name(copy.name + suffix))


def _ready_victim(database: Path, folder: Path, statement: int) -> subprocess.Popen[str]:
    """The process, as it begins to sync."""
    command = [sys.executable, "-m", "benchmarks.campaigns.kill_victim", str(database), str(folder), str(statement)]
    root = Path(__file__).parents[2]
    victim = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    return victim


def run_points(name: str, options: argparse.Namespace, run_one: Callable[[int], Outcome]) -> int:
    """A campaign of kills, a line of the log each; 0 if the promise held at every point.

    Args:
        name: of the log, in `options.out`.
        options: what `kill_options` read.
        run_one: one kill, from its seed.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    num_killed = num_failed = 0
    path = options.out / f"{name}.jsonl"
    kept = path.read_text(encoding="utf-8") if options.resume and path.exists() else ""
    done = {outcome.seed: outcome for outcome in (Outcome(**json.loads(line)) for line in kept.splitlines())}
    with path.open("a" if options.resume else "w", encoding="utf-8") as log:
        for seed in range(options.seed, options.seed + options.points):
            if seed in done:
                outcome = done[seed]
            else:
                outcome = run_one(seed)
                log.write(json.dumps(asdict(outcome)) + "\n")
                log.flush()
            num_killed += outcome.was_killed
            num_failed += bool(outcome.failures)
            state = f"old {outcome.num_old:3} new {outcome.num_new:3}"
            print(f"{seed:4} {outcome.start:8} {outcome.kill:34} {state} {'; '.join(outcome.failures)}", flush=True)
    print(f"{options.points} points, {num_killed} killed, {num_failed} failed")
    return 1 if num_failed or not num_killed else 0


def kill_options(name: str, arguments: list[str], *, points: int, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.campaigns {name}", description=description)
    parser.add_argument("--points", type=int, default=points)
    parser.add_argument("--seed", type=int, default=0, help="the first of `points` seeds")
    parser.add_argument("--resume", action="store_true", help="points that are in the log stay as they came out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held at every point."""
    return run_points("kill", kill_options("kill", arguments, points=60, description=__doc__), run_point)
