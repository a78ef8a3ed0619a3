"""`tripod suite`: series of checkpoints: audit, pack, restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tripod.training.data.progress import Progress

suite = typer.Typer(help="Series of checkpoints: audit them, pack them into a delta store, restore any step.", no_args_is_help=True)


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
        stdout().print(f"{len(report.steps)} checkpoints, {checked}: {len(report.findings)} findings", markup=False)
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
