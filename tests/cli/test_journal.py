"""`tripod journal`: what it tells of executions, and what it does to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tripod as package
from tests.cli.conftest import Command
from tripod.flows.durable import durable, wait_for

CODE = """
from tripod.flows.durable import durable, wait_for
from tripod.flows.effects import effect

@effect
async def charge(amount: int) -> int:
    print("charged", amount)
    return amount + 1

@durable
async def order(item: str) -> int:
    if not await wait_for("approve", bool, question=f"buy {item}?"):
        raise ValueError("refused")
    return await charge(len(item))
"""


@pytest.fixture
def shop(tmp_path: Path) -> tuple[str, Path]:
    """A journal with one execution that waits, and the code of it."""
    code, where = tmp_path / "shop.py", tmp_path / "shop.db"
    code.write_text(CODE, encoding="utf-8")

    async def begin() -> None:
        space: dict[str, object] = {}
        exec(compile(CODE, str(code), "exec"), space)
        async with package.Journal(where) as journal:
            await journal.run(space["order"], "lamp", id="order-1")

    package.run(begin())
    return str(where), code


def test_a_question_that_stands_for_a_time_is_listed_with_it(tripod: Command, tmp_path: Path) -> None:
    async def begin() -> None:
        @durable
        async def ask() -> bool:
            return await wait_for("go", bool, timeout_s=60.0)

        async with package.Journal(tmp_path / "x.db", clock=lambda: 1e9) as journal:
            await journal.run(ask, id="x")

    package.run(begin())
    assert re.search(
        r"waiting    x  ask\(\{\}\)  until 2001-09-09 \d\d:\d\d:40\n", tripod("journal", "list", "--in", str(tmp_path / "x.db")).out
    )


def test_an_execution_is_listed_shown_answered_and_resumed(tripod: Command, shop: tuple[str, Path]) -> None:
    where, code = shop
    assert 'waiting    order-1  order({"item":"lamp"})\n' in tripod("journal", "list", "--in", where).out
    shown = tripod("journal", "show", "order-1", "--in", where).out
    assert 'waiting   approve({"question":"buy lamp?"})' in shown
    assert "order-1 is waiting for approve: journal.answer('order-1', 'approve', ...) or tripod journal answer; resume\n" in shown
    early = tripod("journal", "resume", "order-1", "--code", code, "--in", where)
    assert early.code == 1
    assert tripod("journal", "answer", "order-1", "approve", "true", "--in", where).code == 0
    done = tripod("journal", "resume", "order-1", "--code", code, "--in", where)
    assert (done.code, done.out) == (0, "charged 4\norder-1 is done: 5\n")
    told = json.loads(tripod("journal", "show", "order-1", "--in", where, "--json").out)
    assert [(step["path"], step["state"], step["result"]) for step in told["steps"]] == [
        ("approve", "done", "true"),
        ("charge", "done", "5"),
    ]
    fork = tripod("journal", "fork", "order-1", "--before", "charge", "--in", where).out.strip()
    assert tripod("journal", "resume", fork, "--code", code, "--in", where).out == f"charged 4\n{fork} is done: 5\n"
    assert tripod("journal", "forget", "--older-than-days", "0", "--in", where).out == "2 forgotten\n"


def test_one_is_cancelled_and_what_cannot_be_done_is_told(tripod: Command, shop: tuple[str, Path]) -> None:
    where, code = shop
    assert tripod("journal", "answer", "order-1", "approve", "yes please", "--in", where).err.startswith("error: 'yes please' is no JSON")
    assert "there is no execution 'order-2'" in tripod("journal", "show", "order-2", "--in", where).err
    assert tripod("journal", "cancel", "order-1", "--in", where).code == 0
    cancelled = tripod("journal", "resume", "order-1", "--code", code, "--in", where)
    assert cancelled.code == 2
    assert "was cancelled; fork it" in cancelled.err
    nowhere = Path(where).with_name("typo.db")
    assert "there is no journal" in tripod("journal", "list", "--in", nowhere).err
    assert not nowhere.exists()
    code.write_text("", encoding="utf-8")
    assert (
        "holds no @durable function and no flow that is named 'order'"
        in tripod("journal", "resume", "order-1", "--code", code, "--in", where).err
    )
