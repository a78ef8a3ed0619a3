"""`tripod eval tasks` and `tripod eval results`: models scored on tasks, and results that others published, as tidy tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.evaluation.table import Cell, Table

_WIDEST = 1000  # characters of a line, where no terminal has a width
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the table: .csv, .parquet or .jsonl.")]
Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]


def tasks(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Runs, with all their checkpoints; run@stepN; folders; org/name@revision."),
    ] = None,
    names: Annotated[
        str, typer.Option("--tasks", metavar="A,B", help="Without it, the tasks are listed. lm-eval:NAME is one of lm-eval.")
    ] = "",
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="Holds the files of the tasks.")] = None,
    texts: Annotated[list[Path] | None, typer.Option("--text", metavar="FILE", help="Also the perplexity of a text file or jsonl.")] = None,
    steps: Annotated[list[int] | None, typer.Option("--step", help="Only these checkpoints of runs; may be given several times.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Of each task, only so many questions.")] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples before each question; none, and of lm-eval what the task says.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="By which examples are drawn.")] = 1234,
    device: Annotated[str, typer.Option("--device", help="Where the models run: cpu, cuda, ...")] = "cpu",
    include: Annotated[
        Path | None, typer.Option("--lm-eval-tasks", metavar="FOLDER", help="Task files to know instead of lm-eval's own.")
    ] = None,
    out: Out = None,
    kept: Annotated[Path | None, typer.Option("--kept", metavar="FOLDER", help="Keeps what was scored, to go on and to add to.")] = None,
    as_json: Json = False,
) -> None:
    """Score checkpoints on tasks, as one table with standard errors.

    With --kept FOLDER, what was scored on a checkpoint is kept by its hash: the same command goes on where it was broken off.
    """
    from tripod import run as run_async
    from tripod.analysis.checkpoints import find_checkpoints
    from tripod.analysis.task_scores import TaskScore, score_checkpoints
    from tripod.cli.study import progress_bars
    from tripod.cli.terminal import stdout

    if not names and not texts:
        from tripod.evaluation.tasks.catalogue import TASKS

        for task in TASKS.values():
            stdout().print(f"{task.name:24} {', '.join(task.metrics)}", markup=False)
        return
    asked = [*(name.strip() for name in names.split(",") if name.strip()), *(f"text:{path}" for path in texts or ())]
    scores = [
        TaskScore(
            task=name,
            limit=limit,
            shots=shots,
            seed=seed,
            data=None if data is None else str(data),
            include=None if include is None else str(include),
        )
        for name in asked
    ]
    checkpoints = find_checkpoints(models or (), steps=steps, device=device)
    with progress_bars() as progress:
        table = run_async(score_checkpoints(scores, checkpoints, kept=kept, progress=progress))
    _give(table, out, as_json=as_json)


def results(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders: lm-eval's JSON of any age, ours, Pythia's.")],
    chosen_tasks: Annotated[str, typer.Option("--tasks", metavar="A,B", help="Only these.")] = "",
    metrics: Annotated[str, typer.Option("--metrics", metavar="A,B", help="Only these.")] = "",
    models: Annotated[str, typer.Option("--models", metavar="A,B", help="Only these.")] = "",
    steps: Annotated[list[int] | None, typer.Option("--step", help="Only these; may be given several times.")] = None,
    keep_repeated: Annotated[bool, typer.Option("--keep-repeated", help="Keep what was published twice; else the newest counts.")] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Read results, whoever wrote them, into one table."""
    from tripod.errors import ConfigError
    from tripod.evaluation.results import read_results

    table = read_results(paths, keep_repeated=keep_repeated)
    wanted: dict[str, list[Cell]] = {
        name: [one.strip() for one in given.split(",") if one.strip()]
        for name, given in (("task", chosen_tasks), ("metric", metrics), ("model", models))
    }
    for name, cells in {**wanted, "step": [*(steps or ())]}.items():
        if absent := [cell for cell in cells if cell not in table.column(name)]:
            known = ", ".join(map(str, dict.fromkeys(table.column(name))))
            raise ConfigError(f"no result has the {name} {', '.join(map(str, absent))}; there are {known[:400]}")
        if cells:
            table = table.among(name, cells)
    _give(table, out, as_json=as_json)


def _give(table: Table, out: Path | None, *, as_json: bool) -> None:
    """To a file, as JSON, or to look at: columns in which nothing stands are left out then."""
    from rich.table import Table as Shown

    from tripod.cli.terminal import note, print_json, stdout

    if out is not None:
        table.write(out)
        note(f"{out}: {len(table)} rows")
        return
    if as_json:
        print_json([dict(row) for row in table])
        return
    columns = [name for name in table.columns if name != "source" and any(row[name] not in (None, "") for row in table)]
    shown = Shown(box=None, pad_edge=False)
    for name in columns:
        shown.add_column(name, overflow="fold")  # a name that is cut is another name
    for row in table:
        shown.add_row(*(_spelled(row[name]) for name in columns))
    stdout().print(shown, width=None if sys.stdout.isatty() else _WIDEST)


def _spelled(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) < 1e6 else f"{cell:.4g}"
    return "" if cell is None else str(cell)
