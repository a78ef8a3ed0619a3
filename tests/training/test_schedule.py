"""Learning rates, as printed or worked out by hand."""

from __future__ import annotations

import math

import pytest

from tripod.training.schedule import Schedule

PYTHIA_70M = Schedule(kind="cosine", peak_lr=1e-3, min_lr=1e-4, num_updates=143_000, num_warmup=1430)


@pytest.mark.parametrize(
    ("step", "expected"),
    [  # step k comes after k - 1 updates
        (1, 1e-3 / 1430),
        (2, 1e-3 / 1430),
        (1430, 1e-3 * 1429 / 1430),
        (1431, 1e-3),
        (143_000, 1e-4 + 4.5e-4 * (1 - math.cos(math.pi / 141_570))),  # one update before the end of the wave
    ],
)
def test_pythias_rates(step: int, expected: float) -> None:
    assert PYTHIA_70M.learning_rate(step - 1) == pytest.approx(expected, rel=1e-9)


def test_the_cosine_is_half_way_down_in_the_middle_and_stays_down_behind_the_end() -> None:
    assert PYTHIA_70M.learning_rate((1430 + 143_000) // 2) == pytest.approx(5.5e-4)
    assert PYTHIA_70M.learning_rate(200_000) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [  # peak 8, floor 2, warm-up 4 of 20 updates: the rates of counts 0, 2, 4, 12, 16, 20
        ("linear", (2.0, 4.0, 8.0, 5.0, 3.5, 2.0)),
        ("wsd", (2.0, 4.0, 8.0, 8.0, 5.0, 2.0)),  # decays over the last 8
        ("constant", (2.0, 4.0, 8.0, 8.0, 8.0, 8.0)),
        ("inverse-sqrt", (2.0, 4.0, 8.0, 8.0 / math.sqrt(3), 4.0, 8.0 / math.sqrt(5))),
        ("t5", (8.0, 8.0, 8.0, 8.0 / math.sqrt(3), 4.0, 8.0 / math.sqrt(5))),
    ],
)
def test_the_other_shapes(kind: str, rates: tuple[float, ...]) -> None:
    schedule = Schedule(kind=kind, peak_lr=8.0, min_lr=2.0, num_updates=20, num_warmup=4, num_decay=8)  # type: ignore[arg-type]
    assert [schedule.learning_rate(count) for count in (0, 2, 4, 12, 16, 20)] == pytest.approx(rates)


def test_without_warm_up_the_first_update_has_the_peak_rate() -> None:
    assert Schedule(kind="linear", peak_lr=1.0, min_lr=0.0, num_updates=10, num_warmup=0).learning_rate(0) == 1.0


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 10_001, 40_000, 10**6])
def test_openmoes_rate_is_one_over_the_root_of_the_step_from_ten_thousand_on(count: int) -> None:
    schedule = Schedule(kind="t5", peak_lr=0.01, min_lr=0.0, num_updates=10**6, num_warmup=10_000)
    assert schedule.learning_rate(count) == pytest.approx(1 / math.sqrt(max(count, 10_000)), rel=1e-12)
