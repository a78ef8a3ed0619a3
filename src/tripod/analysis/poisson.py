"""Do events come at any time alike? Counts in bins of a stream against the Poisson distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, MissingExtraError

BIN = 512  # rows, as in Pythia's study (Biderman et al. 2023, arXiv:2304.01373, section 3.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonTest:
    """Fisher's test of dispersion: the variance of the counts beside their mean, which are equal for a Poisson stream.

    Events come in clusters where `dispersion` is above 1 and `p_clustered` small. It is below 1 where they keep apart, and where they
    are so frequent that a bin begins to be full of them: a share s of all rows alone gives 1 - s.
    """

    num_bins: int
    rate: float  # events a bin
    dispersion: float  # variance over mean; 1 for a Poisson stream
    p_clustered: float  # of a dispersion at least as high
    p_regular: float  # of one at least as low

    @property
    def p_value(self) -> float:
        """Of a dispersion at least as far from 1, either way."""
        return min(1.0, 2 * min(self.p_clustered, self.p_regular))


def bin_counts(events: NDArray[np.bool_], size: int = BIN) -> NDArray[np.int64]:
    """Events in each bin of a stream, in order; the last one is left out where it is not full.

    Raises:
        ConfigError: a bin has no size.
    """
    if size < 1:
        raise ConfigError(f"bins of {size} rows; give at least 1")
    num_bins = len(events) // size
    counts: NDArray[np.int64] = events[: num_bins * size].reshape(num_bins, size).sum(1, dtype=np.int64)
    return counts


def poisson_test(counts: NDArray[np.int64]) -> PoissonTest | None:
    """Test counts of bins of one size. None: fewer than two bins, or no event, tell nothing.

    Given their sum, the counts' sum of squares about the mean over the mean is chi-square with one degree of freedom less than bins
    (Fisher 1950), well enough from some thirty bins on even where events are rare.
    """
    if len(counts) < 2 or not counts.any():
        return None
    rate = float(counts.mean())
    statistic = float(((counts - rate) ** 2).sum() / rate)
    freedom = len(counts) - 1
    return PoissonTest(
        num_bins=len(counts),
        rate=rate,
        dispersion=statistic / freedom,
        p_clustered=float(_scipy_stats().chi2.sf(statistic, freedom)),
        p_regular=float(_scipy_stats().chi2.cdf(statistic, freedom)),
    )


def quantiles(counts: NDArray[np.int64], *, at_most: int = 200) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points of a Q-Q plot: what a Poisson distribution of this mean expects, and the counts themselves, in order.

    Args:
        counts: of bins.
        at_most: so many points, spread evenly over the ranks.
    """
    ranks = np.unique(np.linspace(0, len(counts) - 1, min(at_most, len(counts))).round().astype(np.int64)) if len(counts) else counts
    shares = (ranks + 0.5) / max(1, len(counts))
    return _scipy_stats().poisson.ppf(shares, counts.mean()) if len(counts) else shares, np.sort(counts)[ranks]


def uniformity(events: NDArray[np.bool_]) -> float | None:
    """The p-value of Kolmogorov and Smirnov's test that events are spread evenly over the stream; None without any."""
    (places,) = np.nonzero(events)
    return float(_scipy_stats().kstest((places + 0.5) / len(events), "uniform").pvalue) if len(places) else None


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "studies", "a Poisson test") from error
    return stats
