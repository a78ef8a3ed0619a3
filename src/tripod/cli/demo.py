"""`tripod demo`: what Tripod does, in three acts that print facts anyone can check."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    act: Annotated[
        int | None, typer.Option("--act", min=1, max=3, help="Play only this act: 1 asks documents, 2 trains a model, 3 serves it.")
    ] = None,
) -> None:
    """Show what Tripod does on this machine: ask the Python you have, train a model on it, then serve that to the openai client.

    Nothing is downloaded, and nothing is written but in your cache. The exit code is 1 if a claim does not hold.
    """
    from tripod.cli.demo_documents import ask_python
    from tripod.cli.demo_serving import serve_a_model
    from tripod.cli.demo_study import train_a_model

    console = stage()
    started_s = time.monotonic()
    failures: list[str] = []
    trained: Path | None = None
    if act in (None, 1):
        failures += ask_python(console)
        console.print()
    if act in (None, 2):
        found, trained = train_a_model(console)
        failures += found
        console.print()
    if act in (None, 3):
        failures += serve_a_model(console, trained)
        console.print()
    console.print(f"played in {time.monotonic() - started_s:.1f} s", style="dim")
    if failures:
        for failure in failures:
            print(f"error: a claim does not hold: {failure}", file=sys.stderr)
        raise typer.Exit(1)


def stage() -> Console:
    """At most 110 columns wide, and as wide in a pipe, where no terminal says how wide it is."""
    from rich.console import Console

    width = min(Console().width, 110) if sys.stdout.isatty() else 110
    return Console(width=width, highlight=False)
