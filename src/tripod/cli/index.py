"""`tripod index`: mirror a folder, or files and web pages, into an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tripod.retrieval.sync import SyncReport


def index(
    origins: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER | FILE|URL...",
            help="Documents: text, Markdown, HTML, PDF, Word, PowerPoint, Excel, EPUB, mail, notebooks, source code.",
        ),
    ],
    into: Annotated[
        str,
        typer.Option(
            "--into", metavar="KB.DB|URL", help="The index file, or postgresql://...; made if absent, brought up to date otherwise."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Of these files and URLs, which the next call with it brings up to date.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make an index of a folder, or of files and web pages, or bring it up to date: only what changed is read again.

    The exit status is 1 if a file could not be read; the others are indexed all the same.
    """
    import tripod
    from tripod.cli.terminal import note, print_json, stdout
    from tripod.retrieval.open_store import printable

    report, mode_note = tripod.run(_sync(origins, name, into))
    if mode_note:
        note(f"note: {mode_note}")
    if as_json:
        print_json(report_json(report))
        raise typer.Exit(1 if report.failed else 0)
    counts = f"added {report.added}, changed {report.changed}, removed {report.removed}, unchanged {report.unchanged}"
    stdout().print(f"{printable(into)}: {counts}, failed {len(report.failed)}", markup=False)
    for reason, count in report.ignored.items():
        note(f"not looked at: {count} ({reason})")
    if report.failed:
        note(f"{len(report.failed)} of {report.seen} could not be read, for the reasons above; the others are indexed")
        raise typer.Exit(1)


async def _sync(origins: list[str], name: str, into: str) -> tuple[SyncReport, str | None]:
    from tripod.cli.progress import sync_with_progress
    from tripod.retrieval.index import Index

    async with Index(into) as opened:
        report = await sync_with_progress(opened, origins[0] if len(origins) == 1 else origins, name=name)
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
