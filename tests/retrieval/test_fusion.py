"""Fusion: laws that hold for any scores."""

from __future__ import annotations

import numpy as np
import pytest

from tripod.retrieval.fusion import fuse


def _array(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def test_a_perfect_match_by_words_and_meaning_scores_one() -> None:
    assert fuse(_array(12.0), 12.0, _array(1.0)) == pytest.approx([1.0])


def test_equal_words_are_ordered_by_meaning_and_equal_meaning_by_words() -> None:
    fused = fuse(_array(3.0, 3.0, 1.0), 10.0, _array(0.2, 0.6, 0.2))
    assert list(np.argsort(-fused)) == [1, 0, 2]


def test_a_weak_best_match_by_words_stays_weak() -> None:
    # The best of the list matches a tenth of what was asked for. Scaled by the list's best, it would count as perfect and win.
    fused = fuse(_array(1.0, 0.0), 10.0, _array(0.3, 0.7))
    assert fused[1] > fused[0]


def test_the_result_of_a_passage_does_not_depend_on_the_others() -> None:
    alone = fuse(_array(2.0), 8.0, _array(0.4))
    among = fuse(_array(2.0, 8.0), 8.0, _array(0.4, 0.9))
    assert among[0] == alone[0]
