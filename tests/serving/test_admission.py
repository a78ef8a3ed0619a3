"""Who is let in: bounds in requests and tokens, a share for every tenant, and an honest word on when to come back."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.errors import OverloadedError, RequestError
from tripod.serving.admission import Admission, Ticket


def admission(**limits: Any) -> Admission:
    return Admission(**{"max_running": 2, "max_waiting_requests": 4, "max_waiting_tokens": 1000, "tenant_share": 2.0, **limits})


def test_the_queue_has_its_places_and_those_that_the_engine_has_free() -> None:
    queue = admission()
    tickets = [queue.admit("", 1, 10, 0.0) for _ in range(6)]  # 2 that may run + 4 that wait
    with pytest.raises(OverloadedError, match="6 requests are waiting, and the queue has 6 places"):
        queue.admit("", 1, 10, 0.0)
    queue.start(tickets[0])
    with pytest.raises(OverloadedError, match="5 requests are waiting, and the queue has 5 places"):
        queue.admit("", 1, 10, 0.0)
    queue.release(tickets[0], 1.0)
    queue.admit("", 1, 10, 1.0)


def test_the_queue_is_bounded_in_tokens_as_well_but_takes_any_one_request_alone() -> None:
    queue = admission()
    first = queue.admit("", 1, 5000, 0.0)
    with pytest.raises(OverloadedError, match="about 5000 tokens are waiting, and the queue takes 1000"):
        queue.admit("", 1, 1, 0.0)
    queue.start(first)  # its prompt waits no longer
    queue.admit("", 1, 600, 0.0)
    with pytest.raises(OverloadedError):
        queue.admit("", 1, 401, 0.0)
    queue.admit("", 1, 400, 0.0)


def test_what_can_never_fit_is_no_overload() -> None:
    with pytest.raises(RequestError, match=r"7 choices .* more than this server queues, 6"):
        admission().admit("", 7, 0, 0.0)
    admission().admit("", 6, 0, 0.0)


def test_a_flood_leaves_its_share_of_the_queue_to_others_and_gets_all_of_it_alone() -> None:
    queue = admission(max_running=1, max_waiting_requests=29)
    for _ in range(30):
        queue.admit("flood", 1, 0, 0.0)
    queue = admission(max_running=1, max_waiting_requests=29)
    queue.admit("other", 1, 0, 0.0)
    for _ in range(20):  # the x-th finds x - 1 + 1 waiting, and x <= 2 (30 - x) up to 20
        queue.admit("flood", 1, 0, 0.0)
    with pytest.raises(OverloadedError, match="its share of a queue that others need too"):
        queue.admit("flood", 1, 0, 0.0)
    queue.admit("third", 1, 0, 0.0)  # and there is room for whoever else comes


def test_an_equal_part_of_the_queue_is_a_tenant_s_own_however_little_is_free() -> None:
    queue = admission(max_running=1, max_waiting_requests=29, tenant_share=0.5)
    queue.admit("other", 1, 0, 0.0)
    for _ in range(15):  # half of 30; 0.5 * (30 - 15) would have stopped at ten
        queue.admit("flood", 1, 0, 0.0)
    with pytest.raises(OverloadedError, match="its share of a queue that others need too"):
        queue.admit("flood", 1, 0, 0.0)
    for _ in range(14):  # its own 15, though the free places come down to one
        queue.admit("other", 1, 0, 0.0)
    with pytest.raises(OverloadedError, match="30 requests are waiting"):
        queue.admit("other", 1, 0, 0.0)


def test_a_tenant_that_has_gone_needs_no_share_any_more() -> None:
    queue = admission(max_running=1, max_waiting_requests=2)
    queue.release(queue.admit("gone", 1, 0, 0.0), 0.0)
    for _ in range(3):
        queue.admit("here", 1, 0, 100.0)


def test_a_tenant_has_a_limit_of_its_own_that_counts_what_runs() -> None:
    queue = admission(max_tenant_requests=2)
    queue.start(queue.admit("a", 2, 0, 0.0))
    with pytest.raises(OverloadedError, match="2 requests of 2"):
        queue.admit("a", 1, 0, 0.0)
    queue.admit("b", 2, 0, 0.0)


def test_the_time_to_come_back_is_that_in_which_the_queue_empties_at_the_present_rate() -> None:
    queue = admission(max_running=4, max_waiting_requests=40)
    assert queue.retry_after_s(0.0) == 1.0  # nothing is known
    tickets = [queue.admit("", 1, 0, 0.0) for _ in range(30)]
    for i, ticket in enumerate(tickets[:10]):  # one ends every 0.5 s
        queue.start(ticket)
        queue.release(ticket, i * 0.5)
    assert queue.retry_after_s(5.0) == pytest.approx(20 * 0.5)
    assert queue.retry_after_s(1e6) == 60.0  # never absurd
    for ticket in tickets[10:]:
        queue.release(ticket, 5.0)
    queue.admit("", 20, 0, 3600.0)
    assert queue.retry_after_s(3600.0) == pytest.approx(20 * 0.45)  # nine after the first, in 4.5 s: the pause says nothing of the rate


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "start", "release"]), st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 700)),
        max_size=60,
    )
)
def test_the_ledger_adds_up_after_anything(actions: list[tuple[str, str, int, int]]) -> None:
    queue = admission(max_tenant_requests=5)
    tickets: list[tuple[Ticket, int]] = []
    for now, (action, tenant, number, tokens) in enumerate(actions):
        if action == "admit":
            with suppress(OverloadedError):
                tickets.append((queue.admit(tenant, number, tokens, float(now)), number))
        elif tickets and action == "start":
            queue.start(tickets[tokens % len(tickets)][0])
        elif tickets:
            queue.release(tickets.pop(tokens % len(tickets))[0], float(now))
        assert queue.num_waiting == sum(ticket.num_waiting for ticket, _ in tickets)
        assert queue.num_started == sum(ticket.num_started for ticket, _ in tickets)
        assert queue.num_waiting + queue.num_started == sum(number for _, number in tickets)
        assert queue.waiting_tokens == pytest.approx(sum(t.num_waiting * t.tokens_each for t, _ in tickets))
    for ticket, _ in tickets:
        queue.release(ticket, 1e3)
        queue.release(ticket, 1e3)
    assert (queue.num_waiting, queue.num_started, queue.waiting_tokens) == (0, 0, 0.0)
