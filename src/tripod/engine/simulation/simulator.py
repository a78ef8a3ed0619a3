"""A workload through the policy, step by step, on the clock of a cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.policy import Policy, Schedule
from tripod.engine.policy.request import Request
from tripod.engine.simulation.cost_model import CostModel, StepWork
from tripod.engine.simulation.workload import Arrival
from tripod.errors import ContextLengthError, OverloadedError
from tripod.sampling import GREEDY


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are seconds from the beginning of the workload."""

    arrival: Arrival
    end: Literal["finished", "refused", "too long", "expired"] = "finished"
    token_s: list[float] = field(default_factory=list)  # when each token of the answer was there
    num_cached: int = 0  # tokens of the prompt that were not computed
    retry_after_s: float | None = None  # of a refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A whole run."""

    config: PolicyConfig
    cost: CostModel
    outcomes: Sequence[Outcome]  # in order of arrival
    duration_s: float  # of the simulated clock, to the last token
    num_steps: int
    num_preemptions: int


def simulate(arrivals: Sequence[Arrival], config: PolicyConfig, cost: CostModel) -> Simulation:
    """Replay a workload until everything has ended.

    As in the engine, what arrives during a step is taken up after it.

    Args:
        arrivals: in order of time.
    """
    policy = Policy(config)
    open_requests: dict[Request, Outcome] = {}
    outcomes: list[Outcome] = []
    now = 0.0
    num_steps = 0
    while len(outcomes) < len(arrivals) or policy.has_work:
        if not policy.has_work:
            now = max(now, arrivals[len(outcomes)].time_s)
        while len(outcomes) < len(arrivals) and arrivals[len(outcomes)].time_s <= now:
            outcomes.append(_arrive(policy, arrivals[len(outcomes)], len(outcomes), open_requests, now))
        for request in policy.expire(now):
            open_requests.pop(request).end = "expired"
        schedule = policy.plan(now)
        if not schedule:
            continue
        sampled = _sample(schedule)
        now += cost.step_s(StepWork.of(schedule))
        num_steps += 1
        for request in sampled:
            open_requests[request].token_s.append(now)
        for request in policy.commit(schedule, sampled, now):
            open_requests.pop(request).num_cached = request.num_cached_tokens
    assert policy.blocks.num_available == config.num_blocks, "blocks are lost"
    return Simulation(
        config=config, cost=cost, outcomes=outcomes, duration_s=now, num_steps=num_steps, num_preemptions=policy.num_preemptions
    )


def _arrive(policy: Policy, arrival: Arrival, number: int, open_requests: dict[Request, Outcome], now: float) -> Outcome:
    request = Request(
        id=str(number),
        prompt_ids=arrival.prompt_ids(),
        sampling=GREEDY,
        max_tokens=arrival.num_output,
        seed=number,
        priority=arrival.priority,
        tenant=arrival.tenant,
        deadline_s=None if arrival.timeout_s is None else arrival.time_s + arrival.timeout_s,
    )
    outcome = Outcome(arrival)
    try:
        policy.add(request, now)
    except OverloadedError as error:
        outcome.end, outcome.retry_after_s = "refused", error.retry_after_s
    except ContextLengthError:
        outcome.end = "too long"
    else:
        open_requests[request] = outcome
    return outcome


def _sample(schedule: Schedule) -> dict[Request, tuple[int, ...]]:
    """The simulated executor: a token for each request that is due one. Every answer has tokens of its own, so none is shared."""
    return {request: (-1 - request.seed,) for request, num_tokens in schedule.items() if num_tokens >= request.num_pending_tokens}
