"""`tripod trace`: what a run did, in the terminal or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

trace = typer.Typer(help="Look at traces.", no_args_is_help=True)


@trace.callback()
def traces() -> None:
    """Look at traces."""


@trace.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="TRACE.JSONL", help="Spans, as tripod.seeing.trace_file.write_trace writes them.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="PAGE.HTML", help="Write a page with a timeline instead.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Print attributes in their whole length.")] = False,
) -> None:
    """Print every span with its time and what it was given."""
    from tripod.cli.terminal import stdout
    from tripod.seeing.page import label, num_tokens, page, seconds, with_depth
    from tripod.seeing.trace_file import read_trace

    spans = read_trace(file)
    if html is not None:
        html.write_text(page(spans, title=file.stem), encoding="utf-8")
        stdout().print(f"{html}: {len(spans)} {'run' if len(spans) == 1 else 'runs'}", markup=False)
        return
    for root in spans:
        for span, depth in with_depth(root):
            tokens = "  {} + {} tokens".format(*count) if (count := num_tokens(span)) else ""
            stdout().print(f"{'  ' * depth}{label(span)}  {seconds(span.duration_s)}{tokens}", markup=False)
            for name, value in span.attributes.items():
                text = " ".join(str(value).split()) if not full else str(value)
                stdout().print(
                    f"{'  ' * depth}  {name}: {text if full or len(text) < 100 else text[:97] + '...'}", markup=False, style="dim"
                )
