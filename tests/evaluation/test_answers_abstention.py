"""What a confidence is worth; the judge of the area under the curve is its definition, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.evaluation.answers_abstention import area_under_risk_coverage, auroc, calibration_error, risk_coverage


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_the_right_order_ties_by_half(pairs: list[tuple[float, bool]]) -> None:
    scores, kinds = [score for score, _ in pairs], [kind for _, kind in pairs]
    if len(set(kinds)) < 2:
        assert math.isnan(auroc(scores, kinds))
    else:
        both = [(a, b) for a, is_a in pairs if is_a for b, is_b in pairs if not is_b]
        assert auroc(scores, kinds) == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in both) / len(both))


def test_risk_grows_with_what_is_wrongly_given() -> None:
    coverage, risk = risk_coverage([0.9, 0.8, 0.1], [True, False, True])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert risk.tolist() == pytest.approx([0.0, 1 / 2, 1 / 3])
    assert area_under_risk_coverage([0.9, 0.8, 0.1], [True, False, True]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_equal_confidences_are_given_together_whatever_their_order() -> None:
    assert risk_coverage([0.5, 0.5], [True, False])[1].tolist() == [0.5, 0.5]
    assert risk_coverage([0.5, 0.5], [False, True])[1].tolist() == [0.5, 0.5]


def test_calibration_by_hand_and_by_a_simulation() -> None:
    assert calibration_error([0.95, 0.95, 0.15], [True, False, False]) == pytest.approx((2 * 0.45 + 0.15) / 3)
    assert calibration_error([1.0, 0.92], [False, True]) == pytest.approx(0.96 - 0.5)  # a whole confidence is of the last bin
    generator = np.random.default_rng(3)
    confidence = generator.random(20_000)
    is_right = generator.random(20_000) < confidence
    assert calibration_error(confidence.tolist(), is_right.tolist()) < 0.02
    assert calibration_error((confidence**3).tolist(), is_right.tolist()) > 0.1
