"""A progress bar on stderr while an index is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tripod.retrieval.index import Index
    from tripod.retrieval.origins import Origin
    from tripod.retrieval.sync import SyncProgress, SyncReport


async def sync_with_progress(index: Index, origin: Origin, *, name: str = "", exclude: Sequence[str] = ()) -> SyncReport:
    """Bring an index up to date, showing how far it is and how long it will still take. What failed is named on stderr.

    The bar is there only on a terminal and only while there is work.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from tripod.cli.terminal import note, stderr

    columns = (
        TextColumn("indexing"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[source]}", style="dim", markup=False),
    )
    console = stderr()
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("indexing", total=None, visible=False, source="")

        def show(progress: SyncProgress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, visible=True, source=progress.source[-40:])

        report = await index.sync(origin, name=name, exclude=exclude, progress=show)
    for source, reason in report.failed:
        note(f"could not be read: {source}: {reason}")
    return report
