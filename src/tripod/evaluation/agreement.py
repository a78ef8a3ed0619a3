"""Whether two models answer alike, and whether a difference between them is more than chance: statistics of paired answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tripod.errors import ConfigError
from tripod.evaluation.intervals import Interval, bootstrap


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement beyond chance of two sequences of answers to the same questions (Cohen 1960, doi:10.1177/001316446002000104).

    Returns:
        1 for the same answers, about 0 for independent ones. Where both give one and the same answer throughout, 1.

    Raises:
        ConfigError: they are of different lengths, or empty.
    """
    if len(first) != len(second) or not first:
        raise ConfigError(f"agreement is of answers to the same questions; given {len(first)} and {len(second)} answers")
    num = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / num
    of_first, of_second = Counter(first), Counter(second)
    by_chance = sum(count * of_second[answer] for answer, count in of_first.items()) / num**2
    return 1.0 if by_chance == 1.0 else (observed - by_chance) / (1.0 - by_chance)


@dataclass(frozen=True, slots=True)
class McNemar:
    """An exact test of two paired shares."""

    num_first_only: int  # right (or stereotyping) with the first, not with the second
    num_second_only: int
    p_value: float  # two-sided: so uneven a split of the pairs that differ, if both sides were as likely


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Whether two models differ on the same yes-or-no items (McNemar 1947, doi:10.1007/BF02295996), by the exact binomial.

    Raises:
        ConfigError: they are of different lengths, or empty.
    """
    if len(first) != len(second) or not first:
        raise ConfigError(f"the test is of answers to the same questions; given {len(first)} and {len(second)} answers")
    first_only = sum(one and not other for one, other in zip(first, second, strict=True))
    second_only = sum(other and not one for one, other in zip(first, second, strict=True))
    num = first_only + second_only
    tail = sum(math.comb(num, count) for count in range(min(first_only, second_only) + 1))
    return McNemar(first_only, second_only, min(1.0, 2 * tail / 2**num) if num else 1.0)


def paired_bootstrap(first: Sequence[float], second: Sequence[float], *, num_draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean difference second - first over the same items, which are drawn again with replacement, both values of an item together;
    with 95 % of its bootstrap.

    Raises:
        ConfigError: they are of different lengths, or fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ConfigError(f"a paired bootstrap is of values of the same items, two at least; given {len(first)} and {len(second)}")
    differences = np.asarray(second, float) - np.asarray(first, float)
    return bootstrap(differences.tolist(), np.random.default_rng(seed), num_resamples=num_draws)
