"""What a run of the load generator says: latencies, throughput, goodput at an objective, fairness, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tripod.serving.load import Outcome, Run

_PHASES = ("plan_s", "prepare_s", "model_s", "sample_s", "deliver_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an answer must keep to count as good; None: it need not."""

    ttft_s: float | None = None
    itl_s: float | None = None  # mean over the answer
    latency_s: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        """Whether an answer came whole, and in time."""
        pairs = ((outcome.ttft_s, self.ttft_s), (outcome.itl_s, self.itl_s), (outcome.latency_s, self.latency_s))
        return outcome.is_ok and all(limit is None or value is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of some numbers of seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        ordered = sorted(values)
        return cls(
            mean=fmean(ordered), p50=quantile(ordered, 0.5), p90=quantile(ordered, 0.9), p99=quantile(ordered, 0.99), max=ordered[-1]
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted numbers, between the two nearest."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index (1984): 1 when all are equal, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def max_min_fair(demands: Sequence[float], capacity: float) -> list[float]:
    """What each gets when nobody can have more without taking from one who has less (water filling)."""
    fair = [0.0] * len(demands)
    left, order = capacity, sorted(range(len(demands)), key=lambda i: demands[i])
    for num_served, i in enumerate(order):
        fair[i] = min(demands[i], left / (len(order) - num_served))
        left -= fair[i]
    return fair


def report(run: Run, objective: Objective) -> dict[str, Any]:
    """The whole report, as JSON values."""
    ok = [outcome for outcome in run.outcomes if outcome.is_ok]
    good = [outcome for outcome in ok if objective.is_met(outcome)]
    rejected = [outcome for outcome in run.outcomes if outcome.status in (429, 503)]
    duration_s = max(run.duration_s, 1e-9)
    return {
        "duration_s": duration_s,
        "requests": len(run.outcomes),
        "ok": len(ok),
        "rejected": len(rejected),
        "aborted": sum(outcome.is_aborted for outcome in run.outcomes),
        "failed": sum(not (o.is_ok or o.is_aborted or o.status in (429, 503)) for o in run.outcomes),
        "errors": sorted({o.error for o in run.outcomes if o.error and o.status not in (429, 503)})[:10],
        "output_tokens_per_s": sum(outcome.num_output_tokens for outcome in ok) / duration_s,
        "requests_per_s": len(ok) / duration_s,
        "goodput_requests_per_s": len(good) / duration_s,
        "goodput_tokens_per_s": sum(outcome.num_output_tokens for outcome in good) / duration_s,
        "objective": asdict(objective),
        "ttft_s": _spread([outcome.ttft_s for outcome in ok]),
        "itl_s": _spread([outcome.itl_s for outcome in ok]),
        "latency_s": _spread([outcome.latency_s for outcome in ok]),
        "reject_s": _spread([outcome.end_s - outcome.sent_s for outcome in rejected]),
        "behind_s": _spread([outcome.sent_s - outcome.due_s for outcome in run.outcomes]),  # the generator, behind its own plan
        "output_tokens_by_tenant": by_tenant(ok),
        "cached_share": cached_share(ok),
        "overhead": overhead(run),
        "output_digest": run.digest,
    }


def by_tenant(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Output tokens that each tenant got."""
    tokens: dict[str, int] = {}
    for outcome in outcomes:
        tokens[outcome.tenant] = tokens.get(outcome.tenant, 0) + outcome.num_output_tokens
    return tokens


def cached_share(outcomes: Sequence[Outcome]) -> float | None:
    """Of the prompts' tokens, those that a prefix cache gave; None where the server does not say. A second run of one seed is warm."""
    told = [outcome for outcome in outcomes if outcome.made is not None]
    num_tokens = sum(outcome.num_prompt_tokens for outcome in told)
    return sum(outcome.made["cached_tokens"] for outcome in told if outcome.made) / num_tokens if num_tokens else None


def overhead(run: Run) -> dict[str, float] | None:
    """Mean seconds of one request in each place, from what our own server says; None for others.

    Prefill and decode are split by the shares that plan, prepare, model, sample and deliver have in the last steps.
    """
    told = [outcome for outcome in run.outcomes if outcome.is_ok and outcome.made is not None]
    if not told or not run.steps:
        return None
    split = {name: fmean(outcome.made[name] for outcome in told if outcome.made) for name in ("queue_s", "tokenize_s")}
    computing_s = fmean(outcome.made["prefill_s"] + outcome.made["decode_s"] for outcome in told if outcome.made)
    sums = {phase: sum(step[phase] for step in run.steps) for phase in _PHASES}
    total = sum(sums.values()) or 1.0
    names = {"plan_s": "schedule_s", "prepare_s": "prepare_s", "model_s": "model_s", "sample_s": "sample_s", "deliver_s": "detokenize_s"}
    split |= {names[phase]: computing_s * sums[phase] / total for phase in _PHASES}
    split["http_s"] = fmean(outcome.end_s - outcome.sent_s for outcome in told) - sum(split.values())
    return split


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    spread = Spread.of([value for value in values if value is not None])
    return None if spread is None else asdict(spread)
