"""The tool that executions of the campaign call: a process of its own, with its own store, that knows what really happened.

    python -m benchmarks.campaigns.durable_tool STORE

Prints its port. Each connection is one call, a line of JSON, answered in the order of arrival, even if the caller is dead by then. A call
with a key that it has seen is answered as the first time, and does nothing.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
from typing import Any


def main() -> None:
    store = sqlite3.connect(sys.argv[1], isolation_level=None)
    store.execute("CREATE TABLE effects (space TEXT, label TEXT, key TEXT, reply INTEGER)")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as lines:
                line = lines.readline()
                if not line.endswith("\n"):
                    continue  # the caller died before it had said all
                lines.write(json.dumps(answer(store, json.loads(line))) + "\n")
                try:
                    lines.flush()
                except OSError:
                    continue  # the caller died; the effect has happened


def answer(store: sqlite3.Connection, call: dict[str, Any]) -> Any:
    """What a call returns, after it was done."""
    space, label = call["space"], call["label"]
    if call["what"] == "list":
        return store.execute("SELECT label, key, reply FROM effects WHERE space = ? ORDER BY rowid", (space,)).fetchall()
    [number] = store.execute("SELECT count(*) FROM effects WHERE space = ?", (space,)).fetchone()
    if call["what"] == "read":
        return number
    known = store.execute("SELECT reply FROM effects WHERE space = ? AND key = ?", (space, call["key"])).fetchone() if call["key"] else None
    if known is not None:
        return known[0]
    # A reply that tells how many effects there were: one too many changes all that follow. Calls at the same time are told apart by name.
    reply = len(label) * 7 if call["what"] == "at once" else number + 1
    store.execute("INSERT INTO effects VALUES (?, ?, ?, ?)", (space, label, call["key"], reply))
    return reply


if __name__ == "__main__":
    main()
