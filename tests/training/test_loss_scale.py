"""The scale of float16 losses, step by step as DeepSpeed's rules give it."""

from __future__ import annotations

from tripod.training.loss_scale import LossScale, LossScaling

RULES = LossScaling(initial=16.0, window=3, hysteresis=2, minimum=4.0)


def scales(overflows: str) -> list[float]:
    """The scale after each step; `x` overflows."""
    state, found = RULES.begin(), []
    for step in overflows:
        state = RULES.after(state, has_overflow=step == "x")
        found.append(state.scale)
    return found


def test_the_first_overflow_is_forgiven_and_the_second_halves() -> None:
    assert scales("xx") == [16, 8]


def test_patience_does_not_come_back_before_the_scale_grows() -> None:
    assert scales("x.x") == [16, 16, 8]
    assert scales("x...x") == [16, 16, 16, 32, 32]


def test_so_many_sound_steps_double() -> None:
    assert scales("......") == [16, 16, 32, 32, 32, 64]


def test_an_overflow_starts_the_count_again() -> None:
    assert scales("..x...") == [16, 16, 16, 16, 16, 32]


def test_it_never_falls_below_the_minimum() -> None:
    assert scales("xxxxxx") == [16, 8, 4, 4, 4, 4]


def test_pythia_begins_at_4096() -> None:
    assert LossScaling().begin() == LossScale(scale=2.0**12, overflows_left=2, good_steps=0)
