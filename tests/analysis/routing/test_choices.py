"""Figures of choices are those of loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tripod.analysis.routing.choices import coactivation, load, num_dead, overlap, token_divergence
from tripod.analysis.routing.routed import Ids


def choices(num_tokens: int, num_experts: int, top_k: int, seed: int) -> Ids:
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(num_experts)[:top_k] for _ in range(num_tokens)])


def test_load_is_the_share_of_choices_and_what_nobody_chooses_is_dead() -> None:
    experts = np.array([[0, 1], [1, 0], [1, 3], [0, 1]])
    assert load(experts, 4).tolist() == [3 / 8, 4 / 8, 0, 1 / 8]
    assert num_dead(load(experts, 4)) == 1


def test_experts_are_together_in_as_many_tokens_as_a_loop_counts() -> None:
    experts = choices(200, 6, 3, 1)
    sets = [set(row) for row in experts.tolist()]
    found = coactivation(experts, 6)
    for one in range(6):
        for other in range(6):
            expected = 0.0 if one == other else sum({one, other} <= row for row in sets) / sum(one in row for row in sets)
            assert found[one, other] == pytest.approx(expected)


def test_overlap_does_not_look_at_the_order_of_choices() -> None:
    before, after = choices(100, 8, 2, 1), choices(100, 8, 2, 2)
    expected = np.mean([len(set(a) & set(b)) / 2 for a, b in zip(before.tolist(), after.tolist(), strict=True)])
    assert overlap(before, after) == pytest.approx(expected)
    assert overlap(before, before[:, ::-1]) == 1.0


def test_the_divergence_of_token_ids_is_the_mean_of_scipys_over_frequent_ids() -> None:
    tokens = np.random.default_rng(3).integers(0, 5, 300)
    tokens[0] = 99  # rare
    before, after = choices(300, 4, 2, 1), choices(300, 4, 2, 2)
    expected = []
    for token in range(5):
        counts = [np.bincount(one[tokens == token].ravel(), minlength=4) for one in (before, after)]
        expected.append(jensenshannon(*(one / one.sum() for one in counts), base=2) ** 2)
    assert token_divergence(tokens, before, after, 4, min_tokens=20) == pytest.approx(np.mean(expected))
    assert token_divergence(tokens, before, before, 4, min_tokens=20) == 0.0
