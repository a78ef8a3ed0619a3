"""Whose turn it is, and who may wait."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.engine.policy.test_policy import ask, execute, make_policy, step
from tripod.engine.policy.fair_queue import FairQueue
from tripod.engine.policy.policy import Policy
from tripod.engine.policy.request import Request
from tripod.errors import OverloadedError


def serve_all(policy: Policy) -> list[str]:
    """The order in which requests began."""
    began: list[str] = []
    while policy.has_work:
        schedule = policy.plan(0.0)
        began += [request.id for request in schedule if request.id not in began]
        policy.commit(schedule, execute(schedule), 0.0)
    return began


def test_tenants_take_turns_however_much_one_of_them_sends() -> None:
    policy = make_policy(max_num_requests=1)
    for number in range(6):
        policy.add(ask(f"heavy{number}", [number] * 4, tenant="heavy"), 0.0)
    for number in range(2):
        policy.add(ask(f"light{number}", [9, number, 9, 9], tenant="light"), 0.0)
    assert serve_all(policy) == ["heavy0", "light0", "heavy1", "light1", "heavy2", "heavy3", "heavy4", "heavy5"]


def test_without_fairness_arrival_alone_counts() -> None:
    policy = make_policy(max_num_requests=1, fair=False)
    for number, tenant in enumerate("aaab"):
        policy.add(ask(f"{tenant}{number}", [number], tenant=tenant), 0.0)
    assert serve_all(policy) == ["a0", "a1", "a2", "b3"]


def test_service_is_weighed_by_tokens_not_by_requests() -> None:
    policy = make_policy(max_num_requests=1, max_batch_tokens=64)
    for number in range(20):
        policy.add(ask(f"long{number}", [number] * 30, 5, tenant="long"), 0.0)  # 30 + 2 x 5 = 40
        for part in range(3):
            policy.add(ask(f"short{number}-{part}", [100 + number, part] * 3, 2, tenant="short"), 0.0)  # 6 + 2 x 2 = 10
        if number == 9:
            break
    began = Counter(name.rstrip("0123456789-") for name in serve_all(policy)[:20])
    assert began == {"long": 4, "short": 16}


def test_calling_everything_urgent_wins_nothing_over_other_tenants() -> None:
    policy = make_policy(max_num_requests=1)
    for number in range(3):
        policy.add(ask(f"a{number}", [number], tenant="a", priority=-100), 0.0)
        policy.add(ask(f"b{number}", [10 + number], tenant="b"), 0.0)
    assert serve_all(policy) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_pause_earns_nothing() -> None:
    queue = FairQueue()

    def push(name: str, tenant: str, order: int) -> Request:
        request = ask(name, [1], tenant=tenant)
        request.order = (0.0, order)
        queue.push(request)
        return request

    first = push("b", "busy", 0)
    queue.take(first)
    queue.charge("busy", 100.0)
    busy = push("b", "busy", 1)
    push("i", "idle", 2)
    assert queue.counter("idle") == 100.0
    assert queue.next() is busy  # equal counters: who came first


def test_counters_of_tenants_that_left_are_forgotten() -> None:
    policy = make_policy(max_num_requests=1)
    for number in range(2000):
        policy.add(ask("r", [number], tenant=f"tenant{number}"), 0.0)
        step(policy)
    assert len(policy.waiting._counters) < 600


def test_a_queue_is_bounded_in_tokens_but_takes_one_request_of_any_size() -> None:
    policy = make_policy(max_waiting_tokens=10)
    policy.add(ask("large", range(30)), 0.0)
    with pytest.raises(OverloadedError, match="30 tokens are waiting already and this request has 1; this engine queues 10"):
        policy.add(ask("small", [1]), 0.0)


def test_a_heavy_tenant_leaves_places_for_others() -> None:
    policy = make_policy(max_num_waiting=10)
    for number in range(8):
        policy.add(ask("r", [number], tenant="heavy"), 0.0)
    with pytest.raises(OverloadedError, match="8 of the 8 waiting requests are of the tenant 'heavy'"):
        policy.add(ask("r", [96], tenant="heavy"), 0.0)
    policy.add(ask("r", [99], tenant="light"), 0.0)
    policy.add(ask("r", [98]), 0.0)  # nobody in particular: may take the last place
    with pytest.raises(OverloadedError, match="10 requests are waiting"):
        policy.add(ask("r", [97], tenant="new"), 0.0)


def test_a_refusal_says_when_what_waits_will_have_begun() -> None:
    policy = make_policy(max_num_waiting=6, max_num_requests=1)
    now = 0.0
    for number in range(5):
        policy.add(ask("r", [number]), now)
    for _ in range(3):  # one begins every four seconds
        schedule = policy.plan(now)
        now += 4.0
        policy.commit(schedule, execute(schedule), now)
    for number in range(4):
        policy.add(ask("r", [10 + number]), now)
    with pytest.raises(OverloadedError) as refused:
        policy.add(ask("r", [20]), now)
    assert refused.value.retry_after_s == pytest.approx(6 * 12.0 / 2)  # two began after the first, in twelve seconds


def test_a_wait_that_can_be_foreseen_to_be_too_long_is_refused_to_whoever_causes_it() -> None:
    policy = make_policy(max_wait_s=15.0, max_num_requests=1)
    now = 0.0
    for number in range(4):
        policy.add(ask("r", [number], tenant="heavy"), now)
    for _ in range(3):  # one begins every four seconds
        schedule = policy.plan(now)
        now += 4.0
        policy.commit(schedule, execute(schedule), now)
    policy.add(ask("r", [10], tenant="heavy"), now)  # the second in its queue: begins in 12 s by the last three, 6 s each
    policy.add(ask("r", [11], tenant="light"), now)
    with pytest.raises(OverloadedError, match=r"would wait for about 18\.0 s, and this engine lets none wait for more than 15 s"):
        policy.add(ask("r", [12], tenant="heavy"), now)


def test_a_pause_says_nothing_of_how_fast_the_queue_empties() -> None:
    policy = make_policy(max_wait_s=15.0, max_num_requests=1)
    now = 0.0
    for number in range(4):
        policy.add(ask("r", [number]), now)
    for _ in range(4):  # one begins every four seconds
        schedule = policy.plan(now)
        now += 4.0
        policy.commit(schedule, execute(schedule), now)
    now += 3600.0
    for number in range(3):  # the third begins in 12 s
        policy.add(ask("r", [10 + number]), now)
    with pytest.raises(OverloadedError, match=r"would wait for about 16\.0 s") as refused:
        policy.add(ask("r", [20]), now)
    assert refused.value.retry_after_s == pytest.approx(12.0)
