"""The process that is killed: syncs a folder, and ends itself by SIGKILL right before its n-th SQL statement.

`python -m benchmarks.campaigns.kill_victim DATABASE FOLDER STATEMENT`; with STATEMENT 0 it lives and prints how many statements there were.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys

import tripod
from benchmarks.campaigns.hash_embedder import HashEmbedder
from tripod.retrieval.index import Index
from tripod.retrieval.sqlite_file import SqliteFile


def main() -> None:
    database, folder, statement = sys.argv[1], sys.argv[2], int(sys.argv[3])
    num_statements = 0
    connect = SqliteFile.connect

    def count(sql: str) -> None:
        nonlocal num_statements
        num_statements += 1
        if num_statements == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect_and_count(file: SqliteFile, options: str = "") -> sqlite3.Connection:
        connection = connect(file, options)
        connection.set_trace_callback(count)  # called by SQLite before it runs a statement, the triggers' too
        return connection

    SqliteFile.connect = connect_and_count  # type: ignore[method-assign]

    print("ready", flush=True)  # the imports are done: a delay counts from here

    async def sync() -> None:
        async with Index(database, embedder=HashEmbedder()) as index:
            await index.sync(folder)

    tripod.run(sync())
    print(num_statements)


if __name__ == "__main__":
    main()
