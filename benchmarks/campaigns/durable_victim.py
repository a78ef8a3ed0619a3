"""The process that is killed: works on one execution, and ends itself by SIGKILL at the n-th point where that could matter.

Points stand before and after every transaction of the journal, before a call of the tool, after it was sent, and after it was answered:
the last is the gap between an effect and its record.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from tripod.flows.database import PostgresDatabase, SqliteDatabase
from tripod.flows.durable import durable
from tripod.flows.effects import effect
from tripod.flows.flow import Flow
from tripod.flows.journal import Journal
from tripod.flows.step import each

T = TypeVar("T")

_port = 0
_num_points = _kill_at = 0
_lock = threading.Lock()


def point() -> None:
    """Here the process may die."""
    global _num_points
    with _lock:
        _num_points += 1
        if _num_points == _kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def call(port: int, what: str, space: str, label: str = "", key: str = "") -> Any:
    """Ask the tool."""
    point()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rw") as lines:
        lines.write(json.dumps({"what": what, "space": space, "label": label, "key": key}) + "\n")
        lines.flush()
        point()
        reply = json.loads(lines.readline())
    point()
    return reply


@effect
def keyed(space: str, label: str, idempotency_key: str = "") -> int:
    return int(call(_port, "do", space, label, idempotency_key))


@effect
async def keyless(space: str, label: str) -> int:
    return int(await anyio.to_thread.run_sync(call, _port, "do", space, label))


@effect(repeatable=True)
def read(space: str) -> int:
    return int(call(_port, "read", space))


@effect
def one_of_many(label: str, space: str, idempotency_key: str = "") -> int:
    return int(call(_port, "at once", space, label, idempotency_key))


@durable
async def work(space: str, seed: int) -> list[int]:
    """Some steps of every kind, the later ones depending on what the earlier ones returned."""
    generator = random.Random(seed)
    results: list[int] = []
    for number in range(generator.randint(3, 7)):
        kind = generator.choice(["keyed", "keyless", "read", "many"])
        label = f"{number}-{sum(results)}"
        if kind == "keyed":
            results.append(await keyed(space, label))
        elif kind == "keyless":
            results.append(await keyless(space, label))
        elif kind == "read":
            results.append(await read(space))
        else:
            labels = [f"{label}-{letter}" for letter in "abc"]
            results += await Flow(each(one_of_many, limit=3), name=f"many{number}")(label=labels, space=space)
    return results


def victim(location: str, port: int, seed: int, space: str, options: dict[str, Any], outcome: Connection) -> None:
    """One life of a worker.

    Args:
        location: of the journal.
        port: of the tool.
        seed: of what is to be done.
        space: names the execution, and its part of the tool's store.
        options: `kill_at` (0: it lives), `late_s` (how far its clock is ahead, so that a dead one's lease is over), and for `resume`.
        outcome: where it tells how it ended, if it does.
    """
    global _port, _kill_at
    _port, _kill_at = port, options.pop("kill_at")
    late_s = options.pop("late_s")
    for database in (SqliteDatabase, PostgresDatabase):
        _watch(database)

    async def live() -> dict[str, Any]:
        async with Journal(location, clock=lambda: time.time() + late_s) as journal:
            found = await journal.run(work, space, seed, id=space)
            retry = [path for path in options.get("retry", ()) if path in found.in_doubt]  # what a dead one was told it may have journalled
            skip = {path: result for path, result in options.get("skip", {}).items() if path in found.in_doubt}
            if retry or skip:
                found = await journal.resume(space, work, retry=retry, skip=skip)
            history = await journal.history(space)
            return {
                "state": found.state,
                "result": found.value,
                "in_doubt": found.in_doubt,
                "num_steps": len(history),
                "labels": {one.path: json.loads(one.arguments).get("label") for one in history},
            }

    told = anyio.run(live)
    outcome.send({**told, "num_points": _num_points})


def _watch(database: Any) -> None:
    transaction: Callable[..., Any] = database.transaction

    async def watched(self: Any, work: Callable[..., T]) -> T:
        point()
        found: T = await transaction(self, work)
        point()
        return found

    database.transaction = watched
