"""`tripod study`: what checkpoints teach, as a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.training.data.progress import Progress


def study(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of the study; `tripod study` alone lists them.")] = None,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Runs, with all their checkpoints; or checkpoints: run@stepN, a folder, org/name@revision."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="For table, picture and what was measured.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="A=B", help="A setting of the study.")] = None,
    steps: Annotated[list[int] | None, typer.Option("--step", help="Only these checkpoints of runs; may be given several times.")] = None,
    kept: Annotated[Path | None, typer.Option("--kept", metavar="FOLDER", help="Where measurements are kept, to share them.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="Holds the files of tasks; of `published`, the published ones.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the models run: cpu, cuda, ...")] = "cpu",
) -> None:
    """Ask a question of checkpoints; the answer is a tidy table (CSV, Parquet) and a picture.

    `tripod study published NAME|all --data FOLDER --out docs/replications` computes published tables anew from the released files instead,
    and ends with 1 where a number differs.

    What was measured on a checkpoint is kept by its hash: the same command goes on where it was broken off, and measures only what is new.
    """
    from tripod import run as run_async
    from tripod.analysis.checkpoints import find_checkpoints
    from tripod.analysis.registry import open_study, settings_help
    from tripod.analysis.study import run_study
    from tripod.cli.terminal import note, stdout
    from tripod.errors import ConfigError

    if name is None:
        _list_studies(settings_help)
        return
    given = dict(_pair(setting) for setting in settings or ())
    if name == "published":
        if given or steps or kept:
            raise ConfigError("`tripod study published` computes from files; --set, --step and --kept are of studies of checkpoints")
        _published(runs or ["all"], data, _folder(out))
        return
    if data is not None:
        given.setdefault("data", str(data))
    chosen = open_study(name, given)
    out = _folder(out)
    checkpoints = find_checkpoints(runs or (), steps=steps, device=device)
    with progress_bars() as progress:
        finding = run_async(run_study(chosen, checkpoints, out, kept=kept, progress=progress))
    before = len(checkpoints) - finding.num_measured
    note(f"{finding.num_measured} checkpoints measured{f', {before} measured before' if before else ''}; {out}/plot.png")
    for remark in finding.remarks:
        stdout().print(remark, markup=False, soft_wrap=True)
    stdout().print(f"{out / 'table.csv'}: {len(finding.table)} rows", markup=False)


def _folder(out: Path | None) -> Path:
    from tripod.errors import ConfigError

    if out is None:
        raise ConfigError("give the folder for table and picture: --out FOLDER")
    return out


def _published(names: list[str], data: Path | None, out: Path) -> None:
    """Write replication cards; ends with 1 when a number differs."""
    from tripod.analysis.replication import replicate, write_card
    from tripod.analysis.replication_cards import cards_named
    from tripod.cli.terminal import stdout
    from tripod.errors import ConfigError

    if data is None:
        raise ConfigError("give the folder with the published files: --data FOLDER")
    outcomes = [replicate(card, data) for name in names for card in cards_named(name)]
    for outcome in outcomes:
        write_card(outcome, out, data)
        counts = ", ".join(f"{outcome.count(mark)} {mark}" for mark in ("equal", "differs", "not checkable"))
        stdout().print(f"{outcome.card.name}: {counts}", markup=False)
    if any(outcome.count("differs") for outcome in outcomes):
        raise typer.Exit(1)


def _list_studies(settings_help: Callable[[str], dict[str, str]]) -> None:
    from rich.table import Table

    from tripod.analysis.registry import STUDIES
    from tripod.cli.terminal import stdout

    table = Table("study", "asks", "settings (--set A=B)", box=None, pad_edge=False)
    for name, (_, about) in STUDIES.items():
        table.add_row(name, about, "\n".join(f"{key}={value}" for key, value in settings_help(name).items()))
    stdout().print(table)


def _pair(setting: str) -> tuple[str, str]:
    from tripod.errors import ConfigError

    key, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: expected A=B")
    return key, value


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each stage of the work, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from tripod.cli.terminal import stderr

    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield show
