"""Runs of a suite, each trained by a process of its own, and the table that shows them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from tripod.training.suite import Member

POLL_S = 0.5
LOG = "train.log"
_PATIENCE_S = 2.0
State = Literal["waiting", "training", "complete", "stopped", "failed"]
_STYLES = {"waiting": "dim", "training": "bold", "complete": "green", "stopped": "yellow", "failed": "red"}


@dataclass(slots=True, eq=False)
class _Work:
    """A run and the process that trains it."""

    member: Member
    state: State = "waiting"
    process: subprocess.Popen[bytes] | None = None
    began_at: int = 0  # the step


class SuiteRun:
    """Trains what is unfinished, some runs at a time. The processes stop when this one does, even when it is killed."""

    def __init__(self, members: Sequence[Member], *, jobs: int, options: Sequence[str]) -> None:
        """
        Args:
            members: whose data is prepared.
            jobs: runs at a time.
            options: of `tripod train`, for each.
        """
        from tripod.training.suite import standing

        self._works = [_Work(member) for member in members]
        self._jobs = jobs
        self._options = tuple(options)
        for work in self._works:
            if standing(work.member.recipe).is_complete:
                work.state = "complete"

    @property
    def is_complete(self) -> bool:
        return all(work.state == "complete" for work in self._works)

    def run(self) -> signal.Signals | None:
        """Train until all runs have ended. SIGINT and SIGTERM let each save and end; the first of them is returned.

        Another, seconds later, ends them at once.
        """
        with _signals_noted() as received, self._shown():
            while True:
                for work in self._works:
                    if work.process is not None and (code := work.process.poll()) is not None:
                        self._ended(work, code, is_stopping=bool(received))
                running = [work for work in self._works if work.process is not None]
                if received:
                    for work in running:
                        assert work.process is not None
                        work.process.send_signal(signal.SIGKILL if _is_urgent(received) else signal.SIGTERM)
                    if not running:
                        return received[0][0]
                else:
                    waiting = [work for work in self._works if work.state == "waiting"]
                    for work in waiting[: max(0, self._jobs - len(running))]:
                        self._begin(work)
                    if not running and not waiting:
                        return None
                time.sleep(POLL_S)

    def table(self) -> Table:
        from rich.table import Table

        from tripod.training.suite import standing

        table = Table("run", "state", box=None, pad_edge=False)
        for heading in ("step", "loss", "validation", "tokens/s", "left"):
            table.add_column(heading, justify="right")
        for work in self._works:
            now = standing(work.member.recipe)
            is_moving = work.state == "training" and now.step > work.began_at
            table.add_row(
                work.member.name,
                f"[{_STYLES[work.state]}]{work.state}",
                f"{now.step}/{work.member.recipe.num_steps}",
                _number(now.loss, ".3f"),
                _number(now.valid_loss, ".3f"),
                _number(now.tokens_per_s, ",.0f"),
                _duration(now.seconds_left) if is_moving else "",
            )
        return table

    def failures(self) -> dict[str, str]:
        """The names of failed runs, with the last that each said."""
        failed = [work.member for work in self._works if work.state == "failed"]
        return {member.name: _last_line(Path(member.recipe.run) / LOG) for member in failed}

    def _begin(self, work: _Work) -> None:
        from tripod.training.run import RECIPE
        from tripod.training.suite import standing

        folder = Path(work.member.recipe.run)
        work.began_at = standing(work.member.recipe).step
        command = [sys.executable, "-m", "tripod", "train", str(folder / RECIPE), "--resume", "--stop-with-parent", *self._options]
        with (folder / LOG).open("ab") as log:
            # Ctrl-C reaches every process of a terminal's session; theirs is another, so that we decide when they end.
            work.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._become(work, "training")

    def _ended(self, work: _Work, code: int, *, is_stopping: bool) -> None:
        from tripod.training.suite import standing

        work.process = None
        if code and not (is_stopping and code < 0):  # below 0: by our signal, before it could begin or when it took too long
            self._become(work, "failed")
        else:
            self._become(work, "complete" if standing(work.member.recipe).is_complete else "stopped")

    def _become(self, work: _Work, state: State) -> None:
        from tripod.cli.terminal import note, stderr
        from tripod.training.suite import standing

        work.state = state
        if not stderr().is_terminal:
            now = standing(work.member.recipe)
            loss = "" if now.loss is None else f", loss {now.loss:.3f}"
            note(f"{work.member.name}: {state} at step {now.step} of {work.member.recipe.num_steps}{loss}")

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """On a terminal, the table as it changes."""
        from rich.live import Live

        from tripod.cli.terminal import stderr

        console = stderr()
        if not console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=console, refresh_per_second=1, transient=True):
            yield


@contextmanager
def _signals_noted() -> Iterator[list[tuple[signal.Signals, float]]]:
    """Within the block Ctrl-C and SIGTERM are noted with their times, not obeyed."""
    received: list[tuple[signal.Signals, float]] = []

    def receive(number: int, _: object) -> None:
        received.append((signal.Signals(number), time.monotonic()))

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_urgent(received: Sequence[tuple[signal.Signals, float]]) -> bool:
    """`timeout` and some supervisors send a signal to a process and to its group, so two at one time are one."""
    return received[-1][1] - received[0][1] > _PATIENCE_S


def _last_line(path: Path) -> str:
    text = path.read_bytes()[-4096:].decode(errors="replace") if path.is_file() else ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def threads_each(jobs: int) -> int:
    """Threads of each of so many runs, that share the processor."""
    return max(1, (os.cpu_count() or 1) // jobs)
