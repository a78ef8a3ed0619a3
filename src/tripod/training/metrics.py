"""What a run measured, one JSON object a line: written as it happens, whole after any crash."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tripod.durable_files import atomic_file

FILE_NAME = "metrics.jsonl"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; a last line that a crash cut short is left out."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


class MetricsLog:
    """Appends to a metrics file. A line is in the file when `write` returns, and on the disk after `sync`."""

    def __init__(self, path: Path, *, first_step: int, is_kept: bool = True) -> None:
        """Open the file for a run that goes on behind `first_step` steps: what later steps wrote before a crash is taken out.

        Where it is not kept, because another process of the run writes it, nothing is written.
        """
        self._stream: IO[bytes] | None = None
        if not is_kept:
            return
        if path.is_file():
            kept = [record for record in read_metrics(path) if record["step"] <= first_step]
            with atomic_file(path) as stream:
                stream.writelines(_line(record) for record in kept)
        self._stream = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write(_line(record))  # one system call: a crash of the process leaves all of a line or nothing

    def sync(self) -> None:
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


@dataclass(slots=True)
class SpikeDetector:
    """Notes a loss that is far above those before it.

    Far is `threshold` standard deviations above the mean of the last `window` losses. A spike is not counted among the losses that
    the next one is compared with; `patience` of them in a row are no spikes any more but the level of the run, which begins anew.
    """

    threshold: float = 6.0
    window: int = 64
    patience: int = 16
    _losses: deque[float] = field(default_factory=deque, init=False)
    _in_a_row: list[float] = field(default_factory=list, init=False)

    def is_spike(self, loss: float) -> bool:
        losses = self._losses
        if len(losses) == self.window:
            mean = math.fsum(losses) / self.window
            deviation = math.sqrt(math.fsum((past - mean) ** 2 for past in losses) / self.window)
            if loss > mean + self.threshold * deviation:
                self._in_a_row.append(loss)
                if len(self._in_a_row) == self.patience:
                    self._losses, self._in_a_row = deque(self._in_a_row), []
                return True
            losses.popleft()
        self._in_a_row.clear()
        losses.append(loss)
        return False
