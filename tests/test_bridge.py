"""The bridge from synchronous code: results, errors, early exits, and calls from inside a running loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from tripod.bridge import iterate, run


async def _add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def test_run_returns_the_result() -> None:
    assert run(_add(2, 3)) == 5


def test_run_raises_what_the_coroutine_raises() -> None:
    async def fail() -> None:
        raise ValueError("given 3, expected 4")

    with pytest.raises(ValueError, match="given 3"):
        run(fail())


def test_run_works_where_a_loop_already_runs() -> None:
    async def notebook_cell() -> int:
        return run(_add(1, 1))

    assert asyncio.run(notebook_cell()) == 2


def test_run_inside_its_own_loop_is_refused_instead_of_hanging() -> None:
    async def nested() -> int:
        return run(_add(1, 1))

    with pytest.raises(RuntimeError, match="use 'await' there"):
        run(nested())


def test_iterate_yields_everything_in_order() -> None:
    async def count() -> AsyncIterator[int]:
        for i in range(3):
            yield i

    assert list(iterate(count())) == [0, 1, 2]


def test_leaving_an_iteration_early_closes_it() -> None:
    closed = []

    async def count() -> AsyncIterator[int]:
        try:
            for i in range(100):
                yield i
        finally:
            closed.append(True)

    for i in iterate(count()):
        if i == 2:
            break
    assert closed == [True]


def test_an_exception_inside_the_iterable_rises_at_the_loop() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken at 2")

    iterator = iterate(broken())
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="broken at 2"):
        next(iterator)


def _interpreter(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)


def test_a_coroutine_may_exit_the_program() -> None:
    finished = _interpreter("import sys, tripod\nasync def main():\n    sys.exit(3)\ntripod.run(main())")
    assert (finished.returncode, finished.stderr) == (3, "")


def test_an_exit_leaves_the_bridge_in_order() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(leave())
    assert run(_add(2, 3)) == 5


def test_ctrl_c_waits_for_the_clean_up() -> None:
    code = """
import asyncio, os, signal, threading
from tripod.bridge import run

async def main():
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0.1)  # as an engine takes to close
        print("cleaned up")

try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    finished = _interpreter(code)
    assert (finished.stdout.split("\n"), finished.stderr) == (["cleaned up", "interrupted", ""], "")


def test_ctrl_c_waits_for_a_thread_that_cannot_be_cancelled() -> None:
    code = """
import os, signal, time
import anyio.to_thread
from tripod.bridge import run

def work():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    print("worked")

async def main():
    await anyio.to_thread.run_sync(work)

try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    finished = _interpreter(code)
    assert (finished.stdout.split("\n"), finished.stderr) == (["worked", "interrupted", ""], "")
