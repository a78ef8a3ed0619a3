"""The Poisson test: its size on streams that are Poisson, its power on streams that are not, and its numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tripod.analysis.poisson import bin_counts, poisson_test, quantiles, uniformity
from tripod.errors import ConfigError

_BINS, _STREAMS = 200, 400  # of 512 rows, as a run of 100 000 rows has


def _p_values(kind: str, rate: float, of: str = "p_clustered") -> np.ndarray:
    """Of many streams of counts with this mean."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(_STREAMS):
        # Negative binomial: a Poisson stream whose rate wanders by half of its mean from bin to bin.
        rates = rng.gamma(4.0, rate / 4.0, _BINS) if kind == "clustered" else np.full(_BINS, rate)
        test = poisson_test(rng.poisson(rates))
        assert test is not None
        found.append(getattr(test, of))
    return np.array(found)


@pytest.mark.parametrize("rate", [0.3, 2.0, 20.0])
def test_a_poisson_stream_is_rejected_as_often_as_the_level_says(rate: float) -> None:
    """At 5 %, of 400 streams: 20, give or take three standard deviations of 4.4."""
    for of in ("p_clustered", "p_regular", "p_value"):
        assert 7 <= np.count_nonzero(_p_values("poisson", rate, of) < 0.05) <= 33


@pytest.mark.parametrize(("rate", "power"), [(2.0, 0.95), (20.0, 1.0)])
def test_a_stream_whose_rate_wanders_by_half_is_rejected(rate: float, power: float) -> None:
    """With 200 bins; events as rare as one in three bins show it less often than not, which is why the power is stated."""
    assert (_p_values("clustered", rate) < 0.05).mean() >= power
    assert 0.1 < (_p_values("clustered", 0.3) < 0.05).mean() < 0.5


def test_rows_that_repeat_in_a_burst_are_a_cluster_and_shuffled_they_are_none() -> None:
    rng = np.random.default_rng(1)
    events = rng.random(512 * 200) < 0.004
    events[512 * 50 : 512 * 54] |= rng.random(512 * 4) < 0.05
    in_order, shuffled = (poisson_test(bin_counts(one)) for one in (events, rng.permutation(events)))
    assert in_order is not None
    assert shuffled is not None
    assert in_order.p_clustered < 1e-6 < 0.01 < shuffled.p_value
    assert in_order.dispersion > 1.5
    assert shuffled.dispersion == pytest.approx(1.0, abs=0.3)  # 3 standard deviations of sqrt(2 / 199)


def test_frequent_events_are_more_regular_than_a_poisson_stream_by_their_share() -> None:
    events = np.random.default_rng(2).random(512 * 400) < 0.4
    test = poisson_test(bin_counts(events))
    assert test is not None
    assert test.dispersion == pytest.approx(0.6, abs=0.13)  # 1 - 0.4; 3 standard deviations of 0.6 * sqrt(2 / 399)
    assert test.p_regular < 1e-4 < 0.9 < test.p_clustered


def test_counts_by_hand() -> None:
    events = np.zeros(17, bool)
    events[[0, 1, 4, 5, 6, 7, 16]] = True
    counts = bin_counts(events, 4)
    assert counts.tolist() == bin_counts(events[:16], 4).tolist() == [2, 4, 0, 0]  # the 17th row fills no bin
    test = poisson_test(counts)
    assert test is not None
    assert (test.num_bins, test.rate) == (4, 1.5)
    assert test.dispersion == pytest.approx(((0.5**2 + 2.5**2 + 2 * 1.5**2) / 1.5) / 3)
    half = 11 / 3  # of chi-square, whose tail at 3 degrees of freedom has a closed form
    assert test.p_clustered == pytest.approx(math.erfc(half**0.5) + 2 * (half / math.pi) ** 0.5 * math.exp(-half))
    expected, observed = quantiles(counts)
    assert observed.tolist() == [0, 0, 2, 4]
    assert expected.tolist() == [0, 1, 2, 3]  # where the sums .223, .558, .809, .934 of Poisson(1.5) pass .125, .375, .625, .875


def test_a_stream_without_events_or_with_one_bin_tells_nothing() -> None:
    assert poisson_test(np.zeros(9, np.int64)) is None
    assert poisson_test(np.array([5])) is None
    assert uniformity(np.zeros(9, bool)) is None
    with pytest.raises(ConfigError, match="bins of 0 rows"):
        bin_counts(np.zeros(9, bool), 0)


def test_events_at_the_end_of_a_stream_are_not_spread_evenly() -> None:
    late = np.zeros(1000, bool)
    late[900:950] = True
    even = np.zeros(1000, bool)
    even[::20] = True
    assert (uniformity(late) or 1.0) < 1e-9
    assert (uniformity(even) or 0.0) > 0.99
