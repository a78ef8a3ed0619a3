"""What a mean over cases is worth: bootstrap intervals, of one system and of the difference of two on the same cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
_VALUES_AT_ONCE = 1 << 14  # of some resamples


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over cases, with the interval that holds it in 95 % of bootstrap resamples."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float], generator: np.random.Generator, *, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """The mean of one value a case and its 95 % percentile interval (Efron 1979), over resampled cases.

    Give the difference of two systems' values on the same cases to learn whether one is better.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values were given, so there is no mean")
    sample: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    at_once = max(1, _VALUES_AT_ONCE // len(sample))
    means = np.concatenate(
        [
            sample[generator.integers(0, len(sample), (min(at_once, num_resamples - done), len(sample)))].mean(axis=1)
            for done in range(0, num_resamples, at_once)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high))


def bootstrap_of(
    statistic: Callable[[NDArray[np.int64]], float], count: int, generator: np.random.Generator, *, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """The same for what is no mean, such as an area under a curve: computed anew on each resample.

    Args:
        statistic: of the cases with these indices, which repeat; NaN where it is not defined for them, which is left out.
        count: of cases.

    Raises:
        ValueError: there are no cases, or it is not defined for all of them together.
    """
    if not count:
        raise ValueError("no cases were given, so there is nothing to resample")
    whole = statistic(np.arange(count))
    if np.isnan(whole):
        raise ValueError("the statistic is not defined for these cases, such as where all are of one kind")
    resampled = np.array([statistic(generator.integers(0, count, count)) for _ in range(num_resamples)])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Interval(float(whole), float(low), float(high))
