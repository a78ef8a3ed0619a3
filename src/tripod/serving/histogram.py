"""Histograms of seconds that are fine enough to read quantiles from."""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client.core import HistogramMetricFamily

_PER_DECADE = 24  # each bound is 10 % above the last, so a quantile read off the buckets is within 5 % of the truth
BOUNDS = tuple(
    float(f"{10 ** (exponent / _PER_DECADE):.4g}") for exponent in range(-4 * _PER_DECADE, 3 * _PER_DECADE + 1)
)  # 0.1 ms to 1000 s


class Histogram:
    """Counts of seconds by bucket, and their sum. For one thread; prometheus_client's own walks through all bounds, for every token."""

    __slots__ = ("counts", "name", "sum", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, num_times: int = 1) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += num_times
        self.sum += seconds * num_times

    def family(self) -> HistogramMetricFamily:
        """What Prometheus scrapes."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(f"tripod_{self.name}_seconds", self.text, buckets=buckets, sum_value=self.sum)
