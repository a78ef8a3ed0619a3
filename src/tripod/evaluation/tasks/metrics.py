"""From what each question gave to one number and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Measures = dict[str, float]  # of one question, by name


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    stderr: float | None  # None where one question gives none


class Metric(Protocol):
    """Sums up the measures of many questions."""

    def __call__(self, measures: Sequence[Measures]) -> Estimate: ...


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a measure; its standard error is the sample's, divided by the root of its size (as lm-eval's)."""

    of: str

    def __call__(self, measures: Sequence[Measures]) -> Estimate:
        values = [one[self.of] for one in measures]
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return Estimate(mean, None)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return Estimate(mean, math.sqrt(variance / len(values)))


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood of an item. Its standard error is by the delta method, where lm-eval draws a bootstrap."""

    of: str = "logprob"

    def __call__(self, measures: Sequence[Measures]) -> Estimate:
        mean = Mean(self.of)(measures)
        value = _exp(-mean.value)
        return Estimate(value, None if mean.stderr is None else value * mean.stderr)


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Log-likelihood a byte or a word over all texts: as a perplexity, or in bits. The standard error is that of a ratio, linearised."""

    unit: str  # "bytes" | "words"
    in_bits: bool = False

    def __call__(self, measures: Sequence[Measures]) -> Estimate:
        units = math.fsum(one[self.unit] for one in measures)
        rate = -math.fsum(one["logprob"] for one in measures) / units
        value = rate / math.log(2) if self.in_bits else _exp(rate)
        if len(measures) < 2:
            return Estimate(value, None)
        residuals = math.fsum((one["logprob"] + rate * one[self.unit]) ** 2 for one in measures)
        stderr = math.sqrt(residuals * len(measures) / (len(measures) - 1)) / units
        return Estimate(value, stderr / math.log(2) if self.in_bits else value * stderr)


@dataclass(frozen=True, slots=True)
class Contrast:
    """The mean of a measure over the questions of one side less that of the other; the sides are told apart by a measure that is 1 or 0."""

    of: str
    side: str

    def __call__(self, measures: Sequence[Measures]) -> Estimate:
        sides = [Mean(self.of)([one for one in measures if one[self.side] == side]) for side in (1.0, 0.0)]
        errors = [one.stderr for one in sides if one.stderr is not None]
        return Estimate(sides[0].value - sides[1].value, math.hypot(*errors) if len(errors) == 2 else None)


def _exp(exponent: float) -> float:
    """Infinity where it is too large for a number, such as the perplexity a word of a text that is one long word."""
    return math.exp(exponent) if exponent < 709 else math.inf
