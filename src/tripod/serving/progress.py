"""Forward progress: an engine that runs requests and brings no tokens is not healthy, however well the server answers."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tripod.engine.engine import Engine

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """Watches that the engine goes forward. Of use to load balancers only if a hang of the engine does not hang this, too."""

    engine: Engine | None
    stall_timeout_s: float
    _is_stalled: bool = field(default=False)

    def trouble(self) -> str | None:
        """What is wrong, in words; None if nothing is. The first look that finds a stall logs what every thread is doing."""
        if self.engine is None:
            return None
        if not self.engine.is_alive:
            return "the engine has ended"
        stalled_s = self.engine.stalled_s()
        was_stalled, self._is_stalled = self._is_stalled, stalled_s > self.stall_timeout_s
        if not self._is_stalled:
            return None
        if not was_stalled:
            _log.error("engine %s: requests run and no token came for %.1f s; its threads:\n%s", self.engine.name, stalled_s, _stacks())
        return f"stalled; requests run and no token came for {stalled_s:.1f} s"


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in sys._current_frames().items()
    )
