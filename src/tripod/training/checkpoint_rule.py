"""Which steps of a run are kept: the union of powers of two and a regular grid, as Pythia keeps 154."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRule:
    """Step 0 (the initial weights), powers of two up to `log_until`, every `every`-th step, the steps in `also`, and the last.

    Pythia: log_until=512, every=1000. The 27 steps at which PolyPythias is evaluated (arXiv:2503.09543) are log_until=512,
    every=10000, offset=3000, also=(1000,).
    """

    log_until: int = 512  # 0: none
    every: int = 1000  # 0: none
    offset: int = 0  # the grid is offset, offset + every, ...
    also: tuple[int, ...] = ()

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the state after `step` updates of `num_steps` is kept."""
        if step in (0, num_steps) or step in self.also:
            return True
        if 0 < step <= self.log_until and step & (step - 1) == 0:
            return True
        return self.every > 0 and step >= self.offset and (step - self.offset) % self.every == 0

    def steps(self, num_steps: int) -> tuple[int, ...]:
        """All steps that a run of this length keeps, in order."""
        grid = range(self.offset, num_steps + 1, self.every) if self.every else ()
        powers = (1 << exponent for exponent in range(self.log_until.bit_length()))
        wanted = {0, num_steps, *powers, *grid, *self.also}
        return tuple(sorted(step for step in wanted if 0 <= step <= num_steps))
