"""`tripod suite`: families of runs and their series of checkpoints: run, compare, audit, pack, restore."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.training.data.progress import Progress

suite = typer.Typer(
    help="Families of runs: train them, compare branches, audit their checkpoints, pack them into a delta store, restore any step.",
    no_args_is_help=True,
)


@suite.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="SUITE.YAML", help="A recipe with a section `suite`, such as recipes/tiny.yaml.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change a field of every run, or of the suite: --set suite.seeds=[1,2]"),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time, which share the processor's threads.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of each run; the bits depend on it.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that tokenise, where the recipe names texts.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every recipe, and list the runs.")] = False,
) -> None:
    """Train every size with every seed; go on with what is unfinished.

    Ctrl-C and SIGTERM let each run save a checkpoint; the same command goes on from there, bit for bit. What a run says is kept in its
    train.log. Ends with 1 when a run failed.
    """
    from tripod.cli.suite_run import SuiteRun, threads_each
    from tripod.cli.terminal import note, stdout
    from tripod.cli.train import prepare_recipe
    from tripod.training.run import Run
    from tripod.training.suite import read_suite

    members = read_suite(path, changes or ())
    if not dry_run:
        for member in members:
            Run.resume(member.recipe)  # refuses what cannot go on, before any work
        for member in members:
            prepare_recipe(member.recipe, workers)
    options = ["--device", device]
    if threads is not None or jobs > 1:
        options += ["--threads", str(threads or threads_each(jobs))]
    work = SuiteRun(members, jobs=jobs, options=options)
    if dry_run:
        stdout().print(work.table())
        return
    received = work.run()
    stdout().print(work.table())
    for name, reason in work.failures().items():
        note(f"{name}: {reason}")
    if work.failures():
        raise typer.Exit(1)
    if received is not None or not work.is_complete:  # a run may have been told to stop by others
        note("stopped and saved; the same command goes on")
        if received is signal.SIGINT:
            raise typer.Exit(130)


@suite.command()
def compare(
    branches: Annotated[
        list[Path], typer.Argument(metavar="BRANCH...", help="Made by `tripod train --branch`; several: one of each seed.")
    ],
    controls: Annotated[
        list[Path] | None, typer.Option("--control", metavar="RUN", help="Of each branch, where it is not the one it names.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--texts", metavar="NAME=FILE", help="A metric more: the loss on a file's lines, or its jsonl texts."),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option("--step", help="Some of the common checkpoints; may be given several times.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Say what interventions did: losses of branch and control on the same texts, with 95 % intervals.

    Of one branch the interval is over texts, of several over seeds.
    """
    from dataclasses import asdict

    from rich.table import Table

    from tripod.cli.terminal import note, print_json, stdout
    from tripod.errors import ConfigError
    from tripod.training.compare import compare as compare_runs
    from tripod.training.compare import control_of
    from tripod.training.compare import plot as draw
    from tripod.training.run import Run

    if controls is not None and len(controls) != len(branches):
        raise ConfigError(f"{len(branches)} branches and {len(controls)} controls; give each its own, in the same order")
    opened = [Run.open(branch) for branch in branches]
    others = [control_of(branch) for branch in opened] if controls is None else [Run.open(control) for control in controls]
    pairs = list(zip(opened, others, strict=True))
    found = compare_runs(pairs, texts=dict(_named_texts(one) for one in texts or ()), steps=steps, progress=_progress())
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        table = Table("metric", box=None, pad_edge=False)
        for heading in ("step", "branch", "control", "difference", "95 % interval", ""):
            table.add_column(heading, justify="right")
        for one in found:
            interval = "one text has none" if one.low is None or one.high is None else f"{one.low:+.4f} to {one.high:+.4f}"
            row = (one.metric, str(one.step), f"{one.branch:.4f}", f"{one.control:.4f}", f"{one.difference:+.4f}", interval)
            table.add_row(*row, "clear" if one.is_clear else "", style="bold" if one.is_clear else None)
        stdout().print(table)
        note(f"intervals over {found[0].num_pairs} seeds" if found[0].interval_of == "seeds" else "intervals over texts, one pair of runs")
    if plot is not None:
        draw(found, plot)
        note(f"{plot} drawn")


def _named_texts(given: str) -> tuple[str, list[str]]:
    from tripod.errors import ConfigError
    from tripod.training.data.raw_documents import JSONL_SUFFIXES, read_documents

    name, equals, path = given.partition("=")
    if not equals or not Path(path).is_file():
        raise ConfigError(f"--texts {given}: expected NAME=FILE, a text file with a text a line, or jsonl")
    if path.endswith(JSONL_SUFFIXES):
        return name, [document.text for document in read_documents(Path(path), path)]
    return name, Path(path).read_text(encoding="utf-8").splitlines()


@suite.command()
def metrics(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="What `tripod train` and `tripod suite run` made.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="The table, a row a step; one that is there is replaced.")],
) -> None:
    """Put the metrics of runs into one Parquet table, for pandas, polars, DuckDB."""
    from tripod.cli.terminal import stdout
    from tripod.training.metrics_table import write_metrics_table
    from tripod.training.run import Run

    num_rows = write_metrics_table([Run.open(run) for run in runs], out)
    stdout().print(f"{out}: {num_rows} rows of {len(runs)} run" + ("s" if len(runs) > 1 else ""), markup=False)


@suite.command()
def coordcheck(
    path: Annotated[Path, typer.Argument(metavar="RECIPE.YAML", help="Of which model, optimizer and seeds are used; its data is not.")],
    widths: Annotated[str, typer.Option("--widths", metavar="W,W,...", help="Hidden sizes to compare: multiples of the recipe's head.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one field of the recipe.")] = None,
    updates: Annotated[int, typer.Option("--updates", min=1, help="Of each model, at the recipe's peak rate.")] = 4,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Check muP: what a few updates do to activations must not depend on the width.

    Ends with 1 when it does, as without `model.mup_base_width`.
    """
    from rich.table import Table

    from tripod.cli.terminal import note, print_json, stdout
    from tripod.errors import ConfigError
    from tripod.training.coordinate_check import LARGEST_SLOPE, check_coordinates, places_beyond, plot_coordinates, slopes
    from tripod.training.recipe_file import read_recipe

    recipe = read_recipe(path, changes or ())
    try:
        given = [int(width) for width in widths.split(",")]
    except ValueError:
        raise ConfigError(f"--widths {widths}: expected whole numbers with commas between them, such as 64,128,256") from None
    found = check_coordinates(recipe, given, num_updates=updates)
    growth, beyond = slopes(found), places_beyond(found)
    if as_json:
        print_json({"widths": [one.width for one in found], "changes": [one.changes for one in found], "slopes": growth, "beyond": beyond})
    else:
        table = Table("change (RMS) at width", box=None, pad_edge=False)
        for heading in (*map(str, given), "slope", ""):
            table.add_column(heading, justify="right")
        for place, slope in growth.items():
            way = "grows" if slope > 0 else "shrinks"
            row = (place, *(f"{one.changes[place]:.4g}" for one in found), f"{slope:+.3f}", way if place in beyond else "")
            table.add_row(*row, style="bold" if place in beyond else None)
        stdout().print(table)
        verdict = f"depends on the width in {', '.join(beyond)}" if beyond else "does not depend on the width"
        stdout().print(f"the change {verdict} (slopes up to {LARGEST_SLOPE} allowed; logits may shrink)", markup=False)
    if plot is not None:
        plot_coordinates(found, plot)
        note(f"{plot} drawn")
    if beyond:
        if recipe.model.mup_base_width is None:
            note("the recipe has the standard parametrization; --set model.mup_base_width=W for muP, W the width of its learning rate")
        raise typer.Exit(1)


@suite.command()
def audit(
    run: Annotated[list[Path], typer.Argument(help="A run that holds stepN, or the folders stepN themselves.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Look for checkpoints that are duplicate, missing, swapped, damaged, of another run, or not initialised as declared.

    Ends with 1 when something is found.
    """
    from tripod.cli.terminal import print_json, stdout
    from tripod.training.audit import audit as audit_series

    report = audit_series(run[0] if len(run) == 1 and not (run[0] / "config.json").is_file() else run, progress=_progress())
    if as_json:
        findings = [{"kind": one.kind, "steps": one.steps, "tensors": one.tensors, "detail": one.detail} for one in report.findings]
        print_json({"steps": report.steps, "hashes_checked": report.num_hashes_checked, "findings": findings})
    else:
        for finding in report.findings:
            stdout().print(str(finding), markup=False)
        checked = (
            f"{report.num_hashes_checked} hashes of manifests checked" if report.num_hashes_checked else "no manifests to check against"
        )
        stdout().print(
            f"{len(report.steps)} checkpoints, {checked}: {len(report.findings)} finding{'' if len(report.findings) == 1 else 's'}",
            markup=False,
        )
    if not report.is_sound:
        raise typer.Exit(1)


@suite.command()
def pack(
    run: Annotated[Path, typer.Argument(help="A run that holds stepN.")],
    into: Annotated[Path, typer.Option("--into", metavar="STORE", help="The delta store, a folder; what it holds already stays.")],
    level: Annotated[int, typer.Option(help="Of zstd. 3 is faster, and the store a little larger.")] = 16,
) -> None:
    """Pack the checkpoints of a run, optimizer states included, into a delta store. The run stays as it is."""
    from tripod.cli.terminal import stdout
    from tripod.training.delta_store import DeltaStore

    store = DeltaStore.open(into, level=level)
    num_added = store.pack(run, progress=_progress())
    size = store.size()
    share = f"{size.stored / 1e6:.1f} MB for tensors of {size.raw / 1e6:.1f} MB"
    stdout().print(f"{into}: {len(store.steps)} checkpoints, {num_added} of them new; {share}", markup=False)


@suite.command()
def restore(
    store: Annotated[Path, typer.Argument(help="A delta store.")],
    step: Annotated[int, typer.Argument(help="The step to bring back.")],
    into: Annotated[Path, typer.Option("--into", metavar="FOLDER", help="The folder to make, such as runs/x/step512.")],
) -> None:
    """Bring a checkpoint back, every file byte for byte."""
    from tripod.cli.terminal import stdout
    from tripod.training.delta_store import DeltaStore

    DeltaStore.open(store).restore(step, into)
    stdout().print(f"{into}: step {step}", markup=False)


def _progress() -> Progress:
    """A counter on stderr, where that is a terminal."""
    from tripod.cli.terminal import stderr

    console = stderr()

    def show(stage: str, done: int, total: int | None) -> None:
        if console.is_terminal:
            console.print(f"{stage} {done}/{total}", end="\r" if done != total else "\n", markup=False)

    return show
