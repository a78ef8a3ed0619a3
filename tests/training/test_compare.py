"""Intervals of differences, against what can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tripod.training import compare
from tripod.training.compare import Difference, difference, plot, student_t


def test_one_pair_has_a_bootstrap_over_texts() -> None:
    """Of n texts with independent differences the interval is close to mean +- 1.96 s / sqrt(n)."""
    rng = np.random.default_rng(1)
    control = rng.normal(3.0, 1.0, (1, 400))
    apart = rng.normal(-0.1, 0.5, (1, 400))
    found = difference("loss", 8, control + apart, control)
    half = 1.96 * apart.std() / 20
    assert found.difference == pytest.approx(apart.mean())
    assert (found.low, found.high) == pytest.approx((apart.mean() - half, apart.mean() + half), abs=0.1 * half)
    assert (found.interval_of, found.num_texts, found.is_clear) == ("texts", 400, True)


def test_pairing_takes_out_what_makes_a_text_hard() -> None:
    """The texts differ by 100 times the effect, which is the same on each."""
    control = np.random.default_rng(2).normal(5.0, 1.0, (1, 30))
    found = difference("loss", 0, control - 0.01, control)
    assert (found.low, found.high) == pytest.approx((-0.01, -0.01))


def test_several_pairs_have_students_interval_over_seeds() -> None:
    """Means 1, 2, 3: mean 2, s = 1, standard error 1 / sqrt(3), t = 4.303 with 2 degrees of freedom."""
    branch = np.array([[0.5, 1.5], [2.0, 2.0], [3.0, 3.0]])
    found = difference("loss", 0, branch, np.zeros((3, 2)))
    assert found.difference == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert (found.interval_of, found.num_pairs, found.is_clear) == ("seeds", 3, False)


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (9, 2.262), (30, 2.042), (40, 2.021), (120, 1.980)])
def test_quantiles_are_those_of_the_printed_table(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=2e-3)


def test_intervals_of_no_effect_hold_zero_as_often_as_they_say() -> None:
    """95 % of intervals over ten seeds without an effect hold zero: of 400, between 92 and 98 % in all but 1 of 100 such tests."""
    rng = np.random.default_rng(3)
    held = sum(not difference("x", 0, rng.normal(size=(10, 1)), np.zeros((10, 1))).is_clear for _ in range(400))
    assert 368 <= held <= 392


@pytest.mark.parametrize("num_texts", [2, 5, 19])
def test_intervals_over_few_texts_hold_the_truth_as_often_as_those_over_many(num_texts: int) -> None:
    """A bootstrap of 5 would hold zero in 83 % of cases."""
    rng = np.random.default_rng(4)
    held = sum(not difference("x", 0, rng.normal(size=(1, num_texts)), np.zeros((1, num_texts))).is_clear for _ in range(400))
    assert 368 <= held <= 392


def test_one_text_gives_no_interval_and_nothing_clear() -> None:
    found = difference("x", 0, np.array([[1.0]]), np.array([[3.0]]))
    assert (found.difference, found.low, found.high, found.is_clear) == (-2.0, None, None, False)


def test_a_bootstrap_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    branch, control = rng.normal(size=(1, 50)), rng.normal(size=(1, 50))
    whole = difference("x", 0, branch, control)
    monkeypatch.setattr(compare, "_RESAMPLED_AT_ONCE", 50 * 999)
    parts = difference("x", 0, branch, control)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.05)
    assert parts.low != parts.high


def test_a_comparison_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    control = np.random.default_rng(2).normal(5.0, 1.0, (1, 30))
    drawn: list[Difference] = [difference(name, step, control + step, control) for name in ("a", "b") for step in (1, 2)]
    drawn.append(difference("one text", 1, control[:, :1] + 1, control[:, :1]))
    plot(drawn, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
