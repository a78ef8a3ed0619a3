"""What a run was like for those who asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tripod.engine.simulation.simulator import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A service-level objective: a request is good if both hold."""

    ttft_s: float = 2.0  # arrival to first token
    itl_s: float = 0.2  # mean time between its tokens

    def is_met(self, outcome: Outcome) -> bool:
        token_s = outcome.token_s
        if outcome.end != "finished" or token_s[0] - outcome.arrival.time_s > self.ttft_s:
            return False
        return len(token_s) < 2 or (token_s[-1] - token_s[0]) / (len(token_s) - 1) <= self.itl_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Numbers of one run; latencies in seconds, of requests that finished."""

    num_requests: int
    num_finished: int
    num_refused: int
    num_expired: int
    duration_s: float
    output_tokens_s: float  # throughput of answers
    total_tokens_s: float  # prompts included, cached or not
    goodput: float  # requests a second that met the objective
    good_share: float  # of all requests
    ttft_s: Mapping[str, float]  # by percentile: p50, p90, p99
    itl_s: Mapping[str, float]  # between two tokens of one request
    fairness: float  # Jain's index over tenants; see `fairness`
    cache_hit_rate: float  # of the prompts' tokens

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], duration_s: float, objective: Objective) -> Report:
        """
        Args:
            duration_s: over which rates are taken.
        """
        finished = [outcome for outcome in outcomes if outcome.end == "finished"]
        num_output = sum(len(outcome.token_s) for outcome in finished)
        num_prompt = sum(outcome.arrival.num_prompt for outcome in finished)
        num_good = sum(map(objective.is_met, outcomes))
        duration_s = max(duration_s, 1e-9)
        return cls(
            num_requests=len(outcomes),
            num_finished=len(finished),
            num_refused=sum(outcome.end in ("refused", "too long") for outcome in outcomes),
            num_expired=sum(outcome.end == "expired" for outcome in outcomes),
            duration_s=duration_s,
            output_tokens_s=num_output / duration_s,
            total_tokens_s=(num_output + num_prompt) / duration_s,
            goodput=num_good / duration_s,
            good_share=num_good / max(1, len(outcomes)),
            ttft_s=_percentiles([outcome.token_s[0] - outcome.arrival.time_s for outcome in finished]),
            itl_s=_percentiles([later - earlier for outcome in finished for earlier, later in pairwise(outcome.token_s)]),
            fairness=fairness(outcomes),
            cache_hit_rate=sum(outcome.num_cached for outcome in finished) / max(1, num_prompt),
        )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in (50, 90, 99)}


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index (Jain, Chiu & Hawe 1984): 1 where all are equal, 1/n where one has all."""
    total = sum(shares)
    return total * total / (len(shares) * sum(share * share for share in shares)) if total else 1.0


def max_min_shares(capacity: float, demands: Mapping[str, float]) -> dict[str, float]:
    """The fair division: nobody gets more than it asks for, and nobody could get more without taking from one who has less."""
    shares: dict[str, float] = {}
    for rank, name in enumerate(sorted(demands, key=lambda name: demands[name])):
        shares[name] = min(demands[name], capacity / (len(demands) - rank))
        capacity -= shares[name]
    return shares


def fairness(outcomes: Sequence[Outcome]) -> float:
    """Jain's index over what each tenant was served, as a part of what a fair division of all that was served would give it."""
    served: dict[str, float] = {}
    demands: dict[str, float] = {}
    for outcome in outcomes:
        arrival = outcome.arrival
        demands[arrival.tenant] = demands.get(arrival.tenant, 0.0) + arrival.num_prompt + arrival.num_output
        got = len(outcome.token_s) + (arrival.num_prompt if outcome.token_s else 0)
        served[arrival.tenant] = served.get(arrival.tenant, 0.0) + got
    shares = max_min_shares(sum(served.values()), demands)
    return jain([served[name] / share for name, share in shares.items() if share > 0.0])
