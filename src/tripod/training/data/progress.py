"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called now and then during long work, on the caller's thread. An exception that it raises stops the work."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...  # total is None where nobody knows it yet


def no_progress(stage: str, done: int, total: int | None) -> None:
    """For callers that do not ask."""
