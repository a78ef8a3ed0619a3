"""`tripod index`: mirror a folder into an index file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tripod.retrieval.sync import SyncReport


def index(
    folder: Annotated[Path, typer.Argument(help="Documents: text, Markdown, reStructuredText, HTML, Python source, PDF.")],
    into: Annotated[
        str,
        typer.Option(
            "--into", metavar="KB.DB|URL", help="The index file, or postgresql://...; made if absent, brought up to date otherwise."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make an index of a folder, or bring it up to date: only files that changed are read again."""
    import tripod
    from tripod.cli.terminal import note, print_json, stdout
    from tripod.retrieval.open_store import printable

    report, mode_note = tripod.run(_sync(folder, into))
    if mode_note:
        note(f"note: {mode_note}")
    if as_json:
        print_json(report_json(report))
        return
    counts = f"added {report.added}, changed {report.changed}, removed {report.removed}, unchanged {report.unchanged}"
    stdout().print(f"{printable(into)}: {counts}, failed {len(report.failed)}", markup=False)
    for reason, count in report.ignored.items():
        note(f"not looked at: {count} ({reason})")


async def _sync(folder: Path, into: str) -> tuple[SyncReport, str | None]:
    from tripod.cli.progress import sync_with_progress
    from tripod.retrieval.index import Index

    async with Index(into) as opened:
        report = await sync_with_progress(opened, folder)
        return report, opened.mode_note


def report_json(report: SyncReport) -> dict[str, Any]:
    return {
        "added": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "failed": [{"source": source, "reason": reason} for source, reason in report.failed],
        "ignored": dict(report.ignored),
    }
