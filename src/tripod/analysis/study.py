"""What a study is, and how one is run: measure each checkpoint, which is kept by its hash; conclude from all; draw.

OUT/table.csv, table.parquet      what was found, one value a row
OUT/plot.png, plot.svg            the picture of it
OUT/study.json                    settings, checkpoints with their hashes, versions
OUT/measured/*.jsonl              what was measured on each checkpoint: the same command goes on where it was broken off
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tripod.analysis.checkpoints import Checkpoint
from tripod.durable import atomic_file
from tripod.errors import ConfigError, MissingExtraError
from tripod.evaluation.table import Table
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measured = Sequence[tuple[Checkpoint, Table]]  # in the order in which the checkpoints were given


class Study(Protocol):
    """A question that is asked of checkpoints; its fields are the settings. A frozen dataclass: the settings are part of what names a
    measurement."""

    name: ClassVar[str]  # of the command
    version: ClassVar[int]  # raised when the same settings measure something else than before

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """What a measurement depends on besides weights and settings, such as the hash of a data file: a change measures anew."""
        ...

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        """What takes time, of one checkpoint."""
        ...

    def conclude(self, measured: Measured) -> Table:
        """The tidy table, from what was measured on all of them."""
        ...

    def draw(self, table: Table, figure: Figure) -> None:
        """The picture of the table, on an empty figure whose size may be changed."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What a study found."""

    table: Table
    num_measured: int  # checkpoints; the others were measured before
    folder: Path


async def run_study(
    study: Study, checkpoints: Sequence[Checkpoint], out: Path, *, kept: Path | None = None, progress: Progress = no_progress
) -> Finding:
    """Run a study, measuring only what was not measured before.

    Args:
        study: with its settings.
        checkpoints: what `find_checkpoints` found.
        out: the folder for table, picture and measurements.
        kept: where measurements are kept and looked for, `out/measured` by default; studies may share one folder.
        progress: told the stage "checkpoints", and the stages of each measurement.

    Raises:
        ConfigError: what is given cannot be studied.
        MissingExtraError: matplotlib is not installed. This is said before anything is measured.
    """
    _figure()
    folder = kept or out / "measured"
    measured: list[tuple[Checkpoint, Table]] = []
    num_measured = 0
    for done, checkpoint in enumerate(checkpoints):
        progress("checkpoints", done, len(checkpoints))
        path = folder / f"{measured_as(study)}-{measurement_key(study, checkpoint)[:32]}.jsonl"
        if not path.is_file():
            (await study.measure(checkpoint, progress)).write(path)
            num_measured += 1
        measured.append((checkpoint, Table.read(path)))
    progress("checkpoints", len(checkpoints), len(checkpoints))
    table = study.conclude(measured)
    _write(study, checkpoints, table, out)
    return Finding(table, num_measured, out)


def measurement_key(study: Study, checkpoint: Checkpoint) -> str:
    """Names what is measured: the study with its settings, the weights, and what else it depends on."""
    parts = [measured_as(study), study.version, settings_of(study), checkpoint.hash, checkpoint.device, dict(study.depends_on(checkpoint))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def measured_as(study: Study) -> str:
    """The name under which measurements are kept: the study's own, or that of one which measures the same and concludes something else."""
    return str(getattr(study, "measured_as", study.name))


def settings_of(study: Study) -> dict[str, Any]:
    return asdict(study)  # type: ignore[call-overload, no-any-return]  # by convention a dataclass


def save_picture(study: Study, table: Table, paths: Sequence[Path]) -> None:
    """Draw a table into files of the kinds that their names say, the same bytes for the same table and versions.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    import matplotlib

    figure = _figure()
    with matplotlib.rc_context({"svg.hashsalt": study.name, "svg.fonttype": "path"}):
        study.draw(table, figure)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)


def _write(study: Study, checkpoints: Sequence[Checkpoint], table: Table, out: Path) -> None:
    if not len(table):
        raise ConfigError(f"the study {study.name} found nothing in {len(checkpoints)} checkpoints; see `tripod study {study.name} --help`")
    table.write(out / "table.csv")
    try:
        table.write(out / "table.parquet")
    except MissingExtraError:  # CSV says the same
        (out / "table.parquet").unlink(missing_ok=True)
    save_picture(study, table, [out / "plot.png", out / "plot.svg"])
    about = {
        "study": study.name,
        "version": study.version,
        "settings": settings_of(study),
        "checkpoints": [{"model": one.name, "step": one.step, "hash": one.hash, "folder": str(one.folder)} for one in checkpoints],
        "tripod": metadata.version("tripod"),
    }
    with atomic_file(out / "study.json") as stream:
        stream.write(json.dumps(about, indent=1, default=str).encode() + b"\n")


def _figure() -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "studies", "a study") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
