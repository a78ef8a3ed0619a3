"""Histograms of seconds that are fine enough to read quantiles from."""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client.core import HistogramMetricFamily

# What a quantile read off the buckets may be wrong by is the width of one, if all values lie at its edge. Where clients look, 1 ms to
# 100 s, a bound is 4.9 % above the last; beyond, 21 %.
_DECADES = {-4: 12, -3: 48, -2: 48, -1: 48, 0: 48, 1: 48, 2: 12}  # bounds in each
BOUNDS = (
    *(float(f"{10 ** (decade + i / num):.4g}") for decade, num in _DECADES.items() for i in range(num)),
    1000.0,
)  # 0.1 ms to 1000 s


class Histogram:
    """Counts of seconds by bucket, and their sum. One thread observes, and any may read.

    prometheus_client's own walks through all bounds, for every token.
    """

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
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts.copy(), strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(f"tripod_{self.name}_seconds", self.text, buckets=buckets, sum_value=self.sum)
