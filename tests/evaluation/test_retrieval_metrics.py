"""Retrieval metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.evaluation.intervals import bootstrap
from tripod.evaluation.retrieval_metrics import average_precision, ndcg, recall, reciprocal_rank

RANKING = ["x", "a", "y", "b", "z"]  # relevant at ranks 2 and 4
GAINS = {"a": 1.0, "b": 1.0, "c": 1.0}


def test_ndcg_by_hand() -> None:
    # DCG = 1/log2(3) + 1/log2(5) = 0.63093 + 0.43068; ideal = 1 + 0.63093 + 0.5
    assert ndcg(RANKING, GAINS, k=5) == pytest.approx(1.06161 / 2.13093, abs=1e-5)


def test_ndcg_uses_linear_gains() -> None:
    # DCG = 1/1 + 3/log2(3) = 2.89279; ideal = 3 + 1/log2(3) = 3.63093
    assert ndcg(["low", "high"], {"high": 3.0, "low": 1.0}, k=10) == pytest.approx(2.89279 / 3.63093, abs=1e-5)


def test_the_ideal_of_ndcg_is_cut_at_k_too() -> None:
    assert ndcg(["a"], GAINS, k=1) == 1.0


def test_recall_by_hand() -> None:
    assert recall(RANKING, GAINS, k=3) == pytest.approx(1 / 3)
    assert recall(RANKING, GAINS, k=5) == pytest.approx(2 / 3)


def test_reciprocal_rank_by_hand() -> None:
    assert reciprocal_rank(RANKING, GAINS, k=10) == 0.5
    assert reciprocal_rank(RANKING, GAINS, k=1) == 0.0


def test_average_precision_by_hand() -> None:
    # precision 1/2 at rank 2, 2/4 at rank 4, and nothing for c, which was not found
    assert average_precision(RANKING, GAINS, k=10) == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_a_negative_judgement_is_not_relevant() -> None:
    gains = {"a": 1.0, "x": -1.0}
    assert ndcg(["x", "a"], gains, k=10) == pytest.approx(0.63093, abs=1e-5)
    assert recall(["x", "a"], gains, k=1) == 0.0


@pytest.mark.parametrize("metric", [ndcg, recall, reciprocal_rank, average_precision])
def test_a_query_without_a_relevant_document_has_no_value(metric: object) -> None:
    with pytest.raises(ValueError, match="no relevant document"):
        metric(["a"], {"a": 0.0}, 10)  # type: ignore[operator]


@pytest.mark.parametrize("metric", [ndcg, recall, reciprocal_rank, average_precision])
def test_a_document_named_twice_is_refused(metric: object) -> None:
    with pytest.raises(ValueError, match="twice"):
        metric(["a", "a"], {"a": 1.0}, 10)  # type: ignore[operator]


@given(ranking=st.permutations("abcdefgh"), relevant=st.sets(st.sampled_from("abcdefgh"), min_size=1), k=st.integers(1, 10))
def test_moving_a_relevant_document_to_the_front_never_hurts(ranking: list[str], relevant: set[str], k: int) -> None:
    gains = dict.fromkeys(relevant, 1.0)
    better = sorted(ranking, key=lambda document: document not in relevant)
    for metric in (ndcg, recall, reciprocal_rank, average_precision):
        assert 0.0 <= metric(ranking, gains, k) <= metric(better, gains, k) + 1e-12 <= 1.0 + 2e-12


def test_bootstrap_of_a_coin() -> None:
    # The mean of 400 fair coins has a standard error of 0.025: 95 % lie within 1.96 of them.
    interval = bootstrap([0.0, 1.0] * 200, np.random.default_rng(1), num_resamples=4000)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.005)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.005)


def test_bootstrap_is_repeatable_with_its_generator() -> None:
    values = list(np.random.default_rng(0).random(50))
    assert bootstrap(values, np.random.default_rng(7)) == bootstrap(values, np.random.default_rng(7))
    assert bootstrap(values, np.random.default_rng(7)) != bootstrap(values, np.random.default_rng(8))
