"""Shares with the interval that their numbers allow."""

from __future__ import annotations

import math

_Z = 1.959964  # of 95 %


def wilson(count: int, total: int) -> tuple[float, float, float]:
    """A share and its 95 % interval (Wilson 1927), which holds for few cases and for shares of 0 and 1 too; NaN without any case."""
    if total == 0:
        return math.nan, math.nan, math.nan
    share = count / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding must not leave the share outside
