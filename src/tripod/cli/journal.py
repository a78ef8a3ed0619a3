"""`tripod journal`: executions of a journal, in a file or in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from tripod.flows.journal import Execution, Journal

T = TypeVar("T")

journal = typer.Typer(help="Look after executions: list, show, answer, resume, fork, cancel, forget.", no_args_is_help=True)

Where = Annotated[
    str | None, typer.Option("--in", metavar="JOURNAL.DB|URL", help="A file, or postgresql://user@host/database#schema; else your own.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the execution.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@journal.command("list")
def list_command(where: Where = None, as_json: AsJson = False) -> None:
    """All executions, the newest first."""
    from tripod.cli.terminal import print_json, stdout

    records = _with(where, lambda opened: opened.records())
    if as_json:
        print_json([asdict(record) for record in records])
        return
    for record in records:
        until = "" if record.wake_at_s is None or record.state not in ("waiting", "sleeping") else f"  until {_time(record.wake_at_s)}"
        told = f"{_time(record.created_s)}  {record.state:9}  {record.id}  {record.function}({record.arguments}){until}"
        stdout().print(told, markup=False)


@journal.command()
def show(id: Id, where: Where = None, as_json: AsJson = False) -> None:
    """Where an execution stands, and every step of it."""
    from tripod.cli.terminal import print_json, stdout

    async def read(opened: Journal) -> tuple[Any, ...]:
        return await opened.look(id), await opened.record(id), await opened.history(id)

    found, record, steps = _with(where, read)
    if as_json:
        print_json({"execution": asdict(record), "steps": [asdict(step) for step in steps]})
        return
    print_line = stdout().print
    print_line(f"{record.function}({record.arguments})", markup=False)
    for step in steps:
        took = f"{step.ended_s - step.started_s:8.3f} s" if step.ended_s is not None else " " * 10
        told = step.error if step.error is not None else step.result if step.result is not None else ""
        state = "in doubt" if step.is_in_doubt and record.state == "in doubt" else step.state
        again = f" (call {step.num_attempts})" if step.num_attempts > 1 else ""
        print_line(f"  {_time(step.started_s)} {took}  {state:8}  {step.path}({step.arguments}){again} {told}", markup=False)
    _print(found)


@journal.command()
def answer(
    id: Id,
    step: Annotated[str, typer.Argument(metavar="STEP", help="What it waits for, as `tripod journal show` names it.")],
    value: Annotated[str, typer.Argument(metavar="JSON", help='Such as true, 3 or "yes".')],
    where: Where = None,
) -> None:
    """Give a person's answer. The execution goes on when it is resumed, or when a worker looks."""
    import json

    from tripod.errors import ConfigError

    try:
        given = json.loads(value)
    except ValueError:
        raise ConfigError(f"{value!r} is no JSON; write true, 3, or '\"a text\"'") from None
    _with(where, lambda opened: opened.answer(id, step, given))


@journal.command()
def resume(
    id: Id,
    code: Annotated[str, typer.Option("--code", metavar="MODULE|FILE.PY", help="Where the function of the execution is.")],
    retry: Annotated[list[str] | None, typer.Option("--retry", metavar="STEP", help="Do this step in doubt again.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="STEP=JSON", help="Go on as if this step in doubt had returned that.")
    ] = None,
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="Go on although the code has changed.")] = False,
    where: Where = None,
) -> None:
    """Go on with an execution: results are replayed, effects are not. Exit status 1 if it is not done then."""
    import json

    from tripod.errors import ConfigError

    skipped = {}
    for one in skip or []:
        step, equals, value = one.partition("=")
        try:
            skipped[step] = json.loads(value) if equals else None
        except ValueError:
            raise ConfigError(f"--skip {one}: {value!r} is no JSON; write STEP=true, STEP=3, or STEP='\"a text\"'") from None

    async def go(opened: Journal) -> Execution:
        function = _function(code, (await opened.record(id)).function)
        return await opened.resume(id, function, retry=retry or (), skip=skipped, accept_changes=accept_changes)

    found = _with(where, go)
    _print(found)
    if found.state != "done":
        raise typer.Exit(1)


@journal.command()
def fork(
    id: Id,
    before: Annotated[str | None, typer.Option("--before", metavar="STEP", help="Share its past up to this step; else all of it.")] = None,
    where: Where = None,
) -> None:
    """Make a new execution that shares the past of another, and print its id."""
    print(_with(where, lambda opened: opened.fork(id, before=before)))


@journal.command()
def cancel(id: Id, where: Where = None) -> None:
    """End an execution; who works on it stops before its next effect."""
    _with(where, lambda opened: opened.cancel(id))


@journal.command()
def forget(
    days: Annotated[float, typer.Option("--older-than-days", help="Since anything happened to it.")] = 30.0, where: Where = None
) -> None:
    """Delete finished executions that are old."""
    print(_with(where, lambda opened: opened.forget(days * 86400.0)), "forgotten")


def _with(where: str | None, use: Callable[[Journal], Awaitable[T]]) -> T:
    import tripod
    from tripod.errors import ConfigError
    from tripod.flows.durable import default_journal
    from tripod.flows.journal import Journal

    if where is not None and "://" not in where and not Path(where).exists():
        raise ConfigError(f"there is no journal {where}; name with --in the file in which executions were run")

    async def go() -> T:
        async with Journal(where or default_journal()) as opened:
            return await use(opened)

    return tripod.run(go())


def _function(code: str, name: str) -> Any:
    """The durable function, or the flow, of a name in a module; the journal itself is never asked what to import."""
    import runpy
    import sys
    from importlib import import_module

    from tripod.errors import ConfigError
    from tripod.flows.durable import Durable
    from tripod.flows.flow import Flow

    sys.path.insert(0, "")
    try:
        members = runpy.run_path(code) if code.endswith(".py") else vars(import_module(code))
    except (ImportError, OSError) as error:
        raise ConfigError(f"--code {code}: {error}") from None
    for member in members.values():
        if isinstance(member, Durable | Flow) and member.name == name:
            return member
    raise ConfigError(f"{code} holds no @durable function and no flow that is named {name!r}")


def _print(found: Execution) -> None:
    from tripod.cli.terminal import stdout

    told = f": {found.value!r}" if found.state == "done" else found.hint
    stdout().print(f"{found.id} is {found.state}{told}", markup=False)


def _time(seconds: float) -> str:
    from datetime import datetime

    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
