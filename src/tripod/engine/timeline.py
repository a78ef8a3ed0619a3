"""When each part of a start was done, from the birth of the process on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path


def process_age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up_s - int(after_name[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


@dataclass(slots=True)
class Timeline:
    """Marks of one start."""

    marks: list[tuple[str, float]] = field(default_factory=list)  # what was done, and how old the process was then, in seconds
    _offset_s: float = field(default_factory=lambda: process_age_s() - time.monotonic())

    def mark(self, what: str) -> None:
        """Say that something is done now."""
        self.marks.append((what, time.monotonic() + self._offset_s))

    def __str__(self) -> str:
        """One line: each part with the seconds that it took, and the age of the process at the end."""
        before, parts = 0.0, []
        for what, at in self.marks:
            parts.append(f"{what} {at - before:.2f} s")
            before = at
        return f"{', '.join(parts)}; {before:.2f} s since the process started"
