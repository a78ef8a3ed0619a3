"""`tripod`: every command, and what happens when one fails."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tripod import __version__
from tripod.cli.ask import ask
from tripod.cli.bench import bench
from tripod.cli.chat import chat
from tripod.cli.checkpoint import checkpoint
from tripod.cli.contamination import contamination
from tripod.cli.data import data, tokenizer
from tripod.cli.demo import demo
from tripod.cli.doctor import doctor
from tripod.cli.evaluate import evaluate
from tripod.cli.evaluate_answers import answers, retrieval
from tripod.cli.evaluate_tasks import results, tasks
from tripod.cli.generate import generate
from tripod.cli.index import index
from tripod.cli.journal import journal
from tripod.cli.kb import kb
from tripod.cli.mcp import mcp
from tripod.cli.plan import plan
from tripod.cli.prompt import prompt
from tripod.cli.provenance import provenance
from tripod.cli.replay import replay
from tripod.cli.search import search
from tripod.cli.serve import serve
from tripod.cli.simulate import simulate
from tripod.cli.study import study
from tripod.cli.suite import suite
from tripod.cli.trace import trace
from tripod.cli.train import train
from tripod.errors import ConfigError, JournalError, RequestError, StoreError, TripodError

app = typer.Typer(
    name="tripod",
    help="Train, serve and ask language models. Results go to stdout, progress and notes to stderr.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (ask, index, search, generate, chat, serve, plan, replay, simulate, train, provenance, contamination, study, doctor, demo):
    app.command()(command)
app.add_typer(kb, name="kb")
app.add_typer(mcp, name="mcp")
app.add_typer(prompt, name="prompt")
app.add_typer(journal, name="journal")
app.add_typer(trace, name="trace")
app.add_typer(data, name="data")
app.add_typer(tokenizer, name="tokenizer")
app.add_typer(suite, name="suite")
app.add_typer(checkpoint, name="checkpoint")
app.add_typer(bench, name="bench")
evaluate.command()(answers)
evaluate.command()(retrieval)
evaluate.command()(tasks)
evaluate.command()(results)
app.add_typer(evaluate, name="eval")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tripod {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Options before the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process: 0 done, 1 failed, 2 the call must be changed, 130 interrupted.

    Set TRIPOD_DEBUG=1 for the traceback of an error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: a quotation mark must not end a command in a Latin-1 terminal
    try:
        app(args=list(arguments) if arguments is not None else None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("TRIPOD_DEBUG", "") not in ("", "0"):
            raise
        if isinstance(error, TripodError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, ConfigError | JournalError | RequestError | StoreError) else 1)
        print(f"error: {type(error).__name__}: {error} (run again with TRIPOD_DEBUG=1 to see where)", file=sys.stderr)
        sys.exit(1)
