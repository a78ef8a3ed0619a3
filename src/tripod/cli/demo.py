"""`tripod demo`: what Tripod does, in two acts that print facts anyone can check."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    act: Annotated[int | None, typer.Option("--act", min=1, max=2, help="Play only this act: 1 asks documents, 2 serves a model.")] = None,
) -> None:
    """Show what Tripod does on this machine: ask the Python you have, then serve a model to the openai client.

    Nothing is downloaded, and nothing is written but in your cache. The exit code is 1 if a claim does not hold.
    """
    from tripod.cli.demo_documents import ask_python
    from tripod.cli.demo_serving import serve_a_model

    console = stage()
    started_s = time.monotonic()
    failures: list[str] = []
    for number, play in ((1, ask_python), (2, serve_a_model)):
        if act in (None, number):
            failures.extend(play(console))
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
