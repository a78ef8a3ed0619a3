"""Independent truths: scipy, scikit-learn, and numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from tripod.errors import ConfigError
from tripod.evaluation.agreement import cohen_kappa, mcnemar, paired_bootstrap


def test_kappa_of_cohen_s_own_kind_of_table() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    if len(set(first) | set(second)) > 1:  # else scikit-learn divides by zero
        assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_kappa_of_answers_that_are_all_the_same_is_one() -> None:
    assert cohen_kappa([1, 1], [1, 1]) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test_of_the_pairs_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    found = mcnemar([one for one, _ in pairs], [other for _, other in pairs])
    num = found.num_first_only + found.num_second_only
    assert num == sum(one != other for one, other in pairs)
    assert found.p_value == pytest.approx(binomtest(found.num_first_only, num).pvalue if num else 1.0)


def test_the_paired_bootstrap_is_of_the_differences() -> None:
    rng = np.random.default_rng(1)
    hardness = rng.normal(0, 10, 400)  # what pairing takes out
    first = hardness + rng.normal(0, 1, 400)
    second = hardness + rng.normal(0.5, 1, 400)
    found = paired_bootstrap(first.tolist(), second.tolist())
    half = 1.96 * float((second - first).std(ddof=1)) / 20
    assert found.mean == pytest.approx(float((second - first).mean()))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    assert found.low < 0.5 < found.high


def test_the_bootstrap_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    draws = (rng.normal(0, 1, 60).tolist() for _ in range(300))
    held = [
        (found := paired_bootstrap([0.0] * 60, values, num_draws=400, seed=seed)).low < 0 < found.high for seed, values in enumerate(draws)
    ]
    assert 0.90 < np.mean(held) < 0.98


@pytest.mark.parametrize("test", [cohen_kappa, mcnemar, paired_bootstrap])
def test_answers_to_other_questions_are_not_compared(test: object) -> None:
    with pytest.raises(ConfigError, match=r"2 (answers )?and 1|given 2 and 1"):
        test([True, False], [True])  # type: ignore[operator]
