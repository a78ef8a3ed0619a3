"""Where a run's metrics go beside its own `metrics.jsonl`: TensorBoard and Weights & Biases, each an optional package.

`metrics.jsonl` is the record. A sink is told the same lines as they are written, and is opened where the run goes on: a run that was
broken off behind its last checkpoint computes some steps again, and each sink has one value a step all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tripod.errors import ConfigError, MissingExtraError
from tripod.training.metrics import read_metrics
from tripod.training.recipe_file import to_mapping

if TYPE_CHECKING:
    from tripod.training.run import Run

TENSORBOARD_FOLDER = "tensorboard"


class MetricSink(Protocol):
    """Takes what a run measures, a record a step in ascending order."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take a line of `metrics.jsonl`: "step", and numbers by name."""

    def close(self) -> None:
        """Deliver what is still held back."""


OpenSink = Callable[["Run", int], MetricSink]  # a run, and the steps behind which it goes on: -1 at its beginning


class TensorBoardSink:
    """Event files in the run's folder `tensorboard`, one more each time the run goes on."""

    def __init__(self, run: Run, first_step: int) -> None:
        """Begin an event file that takes back what earlier ones have behind `first_step`.

        A run that had no such sink before is told from its beginning.

        Raises:
            MissingExtraError: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # of torch's wrapper too: it imports tensorboard
            raise MissingExtraError("tensorboard", "tensorboard", "writing metrics for TensorBoard") from None
        folder = run.folder / TENSORBOARD_FOLDER
        is_new = not any(folder.glob("events.*"))
        self._writer = SummaryWriter(folder, purge_step=first_step + 1)
        if is_new:
            for record in read_metrics(run.metrics_path):
                self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, the recipe its configuration; project and mode by wandb's own variables (WANDB_PROJECT, WANDB_MODE).

    Its id follows from the run's folder, so a run that goes on is the same there; wandb leaves out steps that it has already.
    """

    def __init__(self, run: Run, first_step: int) -> None:
        """
        Raises:
            MissingExtraError: wandb is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise MissingExtraError("wandb", "wandb", "sending metrics to Weights & Biases") from None
        folder = run.folder.resolve()
        self._run = wandb.init(
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
            name=run.folder.name,
            resume="allow" if first_step >= 0 else None,  # begun anew in the same folder: another run's metrics are written over
            dir=folder,
            config=to_mapping(run.recipe),
        )

    def write(self, record: Mapping[str, Any]) -> None:
        self._run.log(dict(_numbers(record)), step=record["step"])

    def close(self) -> None:
        self._run.finish()


SINKS: Mapping[str, OpenSink] = {"tensorboard": TensorBoardSink, "wandb": WandbSink}


def sink_named(name: str) -> OpenSink:
    """
    Raises:
        ConfigError: there is none of this name.
    """
    if name not in SINKS:
        raise ConfigError(f"{name!r} is not a place for metrics; expected one of {', '.join(SINKS)}")
    return SINKS[name]


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, float(value)) for name, value in record.items() if name != "step")
