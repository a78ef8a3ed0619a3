"""The steps that Pythia and PolyPythias keep, from their papers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tripod.training.checkpoint_rule import CheckpointRule


def test_pythia_keeps_154_steps() -> None:
    steps = CheckpointRule(log_until=512, every=1000).steps(143_000)
    assert steps == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 143_001, 1000))
    assert len(steps) == 154


def test_polypythias_is_evaluated_at_27_steps() -> None:
    steps = CheckpointRule(log_until=512, every=10_000, offset=3000, also=(1000,)).steps(143_000)
    assert steps == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, *range(3000, 143_001, 10_000))
    assert len(steps) == 27


def test_the_last_step_is_kept_even_off_the_grid() -> None:
    assert CheckpointRule(log_until=0, every=10).steps(25) == (0, 10, 20, 25)


@given(
    log_until=st.integers(0, 70),
    every=st.integers(0, 20),
    offset=st.integers(0, 20),
    also=st.tuples(st.integers(0, 90)),
    num_steps=st.integers(1, 80),
)
def test_the_list_has_the_steps_that_are_due(log_until: int, every: int, offset: int, also: tuple[int], num_steps: int) -> None:
    rule = CheckpointRule(log_until=log_until, every=every, offset=offset, also=also)
    assert rule.steps(num_steps) == tuple(step for step in range(num_steps + 1) if rule.is_due(step, num_steps))
