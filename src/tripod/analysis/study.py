"""What a study is, and how one is run: measure each checkpoint, which is kept by its hash; conclude from all; draw.

OUT/table.csv, table.parquet      what was found, one value a row
OUT/plot.png, plot.svg            the picture of it
OUT/study.json                    settings, checkpoints with their hashes, versions; what a study says in words
OUT/measured/*.jsonl              what was measured on each checkpoint: the same command goes on where it was broken off
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable

from tripod.analysis.checkpoints import Checkpoint
from tripod.durable_files import atomic_file
from tripod.errors import ConfigError, MissingExtraError
from tripod.evaluation.table import Table
from tripod.training.data.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measured = Sequence[tuple[Checkpoint, Table]]  # in the order in which the checkpoints were given
PLACE: Mapping[str, bool] = {"is_measured": False}  # metadata of a field that says where files lie: their content counts (`depends_on`)
CONCLUDED: Mapping[str, bool] = {"is_measured": False}  # of a field that `conclude` alone reads: another value needs no new measurement


class Measurement(Protocol):
    """What is measured on one checkpoint. A frozen dataclass, whose fields are the settings and part of what names a measurement, but for
    fields with metadata PLACE or CONCLUDED."""

    name: ClassVar[str]
    version: ClassVar[int]  # raised when the same settings measure something else than before

    def depends_on(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """What a measurement depends on besides weights and settings, such as the hash of a data file: a change measures anew."""
        ...

    async def measure(self, checkpoint: Checkpoint, progress: Progress) -> Table:
        """What takes time, of one checkpoint."""
        ...


class Study(Measurement, Protocol):
    """A question that is asked of checkpoints; its name is that of the command."""

    def conclude(self, measured: Measured) -> Table:
        """The tidy table, from what was measured on all of them."""
        ...

    def draw(self, table: Table, figure: Figure) -> None:
        """The picture of the table, on an empty figure whose size may be changed."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A study that needs more of its checkpoints than that each can be measured."""

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Asked before anything is measured.

        Raises:
            ConfigError: nothing could be concluded from them.
        """
        ...


@runtime_checkable
class Remarked(Protocol):
    """A study that says in words what its table means."""

    def remarks(self, table: Table) -> tuple[str, ...]:
        """Sentences, the conclusions first and then what to mind; kept in study.json."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What a study found."""

    table: Table
    num_measured: int  # checkpoints; the others were measured before
    folder: Path
    remarks: tuple[str, ...] = ()


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
        ConfigError: what is given cannot be studied; as far as checkpoints alone tell, this is said before anything is measured.
        MissingExtraError: matplotlib is not installed. This is said before anything is measured.
    """
    new_figure()
    if isinstance(study, Checked):
        study.check(checkpoints)
    measured, num_measured = await measure_all(study, checkpoints, kept or out / "measured", progress=progress)
    table = study.conclude(measured)
    remarks = study.remarks(table) if isinstance(study, Remarked) else ()
    _write(study, checkpoints, table, remarks, out)
    return Finding(table, num_measured, out, remarks)


async def measure_all(
    measurement: Measurement, checkpoints: Sequence[Checkpoint], folder: Path, *, progress: Progress = no_progress
) -> tuple[Measured, int]:
    """Measure each checkpoint that has no file in the folder yet; also returns how many those were."""
    measured: list[tuple[Checkpoint, Table]] = []
    num_measured = 0
    for done, checkpoint in enumerate(checkpoints):
        progress("checkpoints", done, len(checkpoints))
        path = measurement_path(measurement, checkpoint, folder)
        if not path.is_file():
            (await measurement.measure(checkpoint, progress)).write(path)
            num_measured += 1
        measured.append((checkpoint, Table.read(path)))
    progress("checkpoints", len(checkpoints), len(checkpoints))
    return measured, num_measured


def measurement_path(measurement: Measurement, checkpoint: Checkpoint, folder: Path) -> Path:
    """Where a measurement is kept."""
    return folder / f"{measured_as(measurement)}-{measurement_key(measurement, checkpoint)[:32]}.jsonl"


def measurement_key(measurement: Measurement, checkpoint: Checkpoint) -> str:
    """Names what is measured: the measurement with its settings, the weights, and what else it depends on."""
    counting = [one.name for one in fields(cast("Any", measurement)) if one.metadata.get("is_measured", True)]
    settings = {name: getattr(measurement, name) for name in counting}
    depends_on = dict(measurement.depends_on(checkpoint))
    parts = [measured_as(measurement), measurement.version, settings, checkpoint.hash, checkpoint.device, depends_on]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def measured_as(measurement: Measurement) -> str:
    """The name under which measurements are kept: the study's own, or that of one which measures the same and concludes something else."""
    return str(getattr(measurement, "measured_as", measurement.name))


def settings_of(study: Measurement) -> dict[str, Any]:
    return asdict(cast("Any", study))


def save_picture(study: Study, table: Table, paths: Sequence[Path]) -> None:
    """Draw a table into files of the kinds that their names say, the same bytes for the same table and versions.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    import matplotlib

    figure = new_figure()
    with matplotlib.rc_context({"svg.hashsalt": study.name, "svg.fonttype": "path"}):
        study.draw(table, figure)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)


def _write(study: Study, checkpoints: Sequence[Checkpoint], table: Table, remarks: Sequence[str], out: Path) -> None:
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
        **({"remarks": list(remarks)} if remarks else {}),
    }
    with atomic_file(out / "study.json") as stream:
        stream.write(json.dumps(about, indent=1, default=str).encode() + b"\n")


def new_figure() -> Figure:
    """An empty figure that needs no screen.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "studies", "the picture of a study") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
