"""The scheduler against a simulated executor: laws over thousands of schedules, and the decisions that users feel."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tripod.engine.policy.policy import Policy, PolicyConfig, Schedule
from tripod.engine.policy.request import Request, Stage
from tripod.errors import ConfigError, ContextLengthError, OverloadedError
from tripod.sampling import SamplingParams

STOP_ID = 7


def make_policy(
    num_blocks: int = 100,
    block_size: int = 4,
    max_context: int = 1000,
    max_batch_tokens: int = 16,
    max_num_requests: int = 4,
    max_num_waiting: int = 50,
) -> Policy:
    return Policy(
        PolicyConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_context=max_context,
            max_batch_tokens=max_batch_tokens,
            max_num_requests=max_num_requests,
            max_num_waiting=max_num_waiting,
        )
    )


def make_request(name: str, num_prompt: int, max_tokens: int, **sampling: int) -> Request:
    return Request(
        id=name,
        prompt_ids=tuple(range(100, 100 + num_prompt)),
        sampling=SamplingParams(**sampling),
        max_tokens=max_tokens,
        stop_ids=frozenset({STOP_ID}),
    )


def execute(schedule: Schedule, token_ids: Sequence[int] = (1,)) -> dict[Request, Sequence[int]]:
    """What an executor gives back: new tokens for each request whose known tokens are then all computed."""
    return {r: token_ids for r, n in schedule.items() if r.num_computed_tokens + n == r.num_tokens and r.max_tokens > 0}


def step(policy: Policy) -> dict[str, int]:
    schedule = policy.plan()
    policy.commit(schedule, execute(schedule))
    return {request.id: num_tokens for request, num_tokens in schedule.items()}


def test_a_long_prompt_is_cut_into_chunks_that_fill_what_decodes_leave_of_the_budget() -> None:
    policy = make_policy(max_batch_tokens=8)
    policy.add(make_request("short", 3, 4))
    policy.add(make_request("long", 18, 1))
    assert step(policy) == {"short": 3, "long": 5}
    assert step(policy) == {"short": 1, "long": 7}
    assert step(policy) == {"short": 1, "long": 6}
    assert step(policy) == {"short": 1}
    assert step(policy) == {}


def test_the_queue_is_never_overtaken() -> None:
    policy = make_policy(num_blocks=4, block_size=4)
    policy.add(make_request("first", 8, 2))
    policy.add(make_request("big", 12, 2))
    policy.add(make_request("small", 1, 2))
    assert step(policy) == {"first": 8}  # "big" needs 3 of the 2 free blocks; "small" would fit, and waits its turn
    assert [request.id for request in policy.waiting] == ["big", "small"]


def test_admission_leaves_a_block_for_each_running_request() -> None:
    policy = make_policy(num_blocks=4, block_size=2)
    for name in ("a", "b", "c"):
        policy.add(make_request(name, 2, 3))
    assert step(policy) == {"a": 2, "b": 2}  # c would take the third block, and only one would be left for two to grow
    assert step(policy) == {"a": 1, "b": 1}
    assert policy.num_preemptions == 0


def test_the_latest_request_is_preempted_and_computed_again() -> None:
    policy = make_policy(num_blocks=5, block_size=2, max_batch_tokens=16)
    early, late = make_request("early", 2, 6), make_request("late", 2, 6)
    policy.add(early)
    policy.add(late)
    assert step(policy) == {"early": 2, "late": 2}
    assert step(policy) == {"early": 1, "late": 1}  # 2 blocks each
    assert step(policy) == {"early": 1, "late": 1}
    assert step(policy) == {"early": 1}  # early takes the fifth block; late finds none
    assert late.stage is Stage.WAITING
    assert late.num_preemptions == policy.num_preemptions == 1
    assert late.output_ids == [1, 1, 1]  # what was generated is kept
    while early.stage is Stage.RUNNING:
        step(policy)
    assert step(policy) == {"late": 5}  # prompt and output in one go
    while policy.has_work:
        step(policy)
    assert (early.output_ids, late.output_ids) == ([1] * 6, [1] * 6)


def test_a_stop_token_ends_a_request_after_min_tokens_only() -> None:
    policy = make_policy()
    request = make_request("r", 2, 9, min_tokens=2)
    policy.add(request)
    for token_id in (STOP_ID, STOP_ID, STOP_ID):
        schedule = policy.plan()
        policy.commit(schedule, execute(schedule, [token_id]))
    assert request.output_ids == [STOP_ID] * 3
    assert request.finish_reason == "stop"


def test_several_tokens_of_one_step_are_cut_at_the_end() -> None:
    policy = make_policy()
    stopped, full = make_request("stopped", 1, 9), make_request("full", 1, 2)
    policy.add(stopped)
    policy.add(full)
    schedule = policy.plan()
    assert policy.commit(schedule, {stopped: [4, STOP_ID, 5], full: [1, 2, 3]}) == [stopped, full]
    assert (stopped.output_ids, stopped.finish_reason) == ([4, STOP_ID], "stop")
    assert (full.output_ids, full.finish_reason) == ([1, 2], "length")


def test_a_request_for_no_tokens_ends_with_its_prompt() -> None:
    policy = make_policy(max_batch_tokens=4)
    request = make_request("score", 6, 0)
    policy.add(request)
    assert step(policy) == {"score": 4}
    assert request.stage is Stage.RUNNING
    assert step(policy) == {"score": 2}
    assert request.finish_reason == "length"
    assert request.output_ids == []


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    policy = make_policy(num_blocks=4, block_size=8, max_context=100)
    with pytest.raises(
        ContextLengthError, match=r"prompt has 30 tokens and the answer may take 3, 33 together; the KV pool .* holds 32 tokens"
    ):
        policy.add(make_request("r", 30, 3))
    with pytest.raises(ContextLengthError, match=r"40 tokens .* the model's context holds 32") as refused:
        make_policy(max_context=32).add(make_request("r", 40, 1))
    assert refused.value.param == "prompt"
    assert not policy.has_work


def test_max_tokens_none_means_what_the_context_leaves() -> None:
    config = make_policy(max_context=50).config
    assert config.resolve_max_tokens(20, None) == 30
    with pytest.raises(ContextLengthError, match="50 tokens and the answer may take 1"):
        config.resolve_max_tokens(50, None)


def test_a_full_queue_refuses_more() -> None:
    policy = make_policy(max_num_waiting=1)
    policy.add(make_request("a", 1, 1))
    with pytest.raises(OverloadedError, match="1 requests are waiting"):
        policy.add(make_request("b", 1, 1))


def test_limits_that_no_request_could_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_blocks=0"):
        make_policy(num_blocks=0)
    with pytest.raises(ConfigError, match="max_batch_tokens=3 is less than max_num_requests=4"):
        make_policy(max_batch_tokens=3)


def test_finishing_twice_changes_nothing() -> None:
    policy = make_policy()
    request = make_request("r", 3, 3)
    policy.add(request)
    step(policy)
    policy.finish(request, "abort")
    policy.finish(request, "stop")
    assert request.finish_reason == "abort"
    assert policy.blocks.num_free == 100


class SchedulerLaws(RuleBasedStateMachine):
    """Random adds, aborts and steps against an executor that returns tokens; the laws hold after each."""

    @initialize(num_blocks=st.integers(1, 12), block_size=st.integers(1, 5), max_num_requests=st.integers(1, 5), extra=st.integers(0, 12))
    def build(self, num_blocks: int, block_size: int, max_num_requests: int, extra: int) -> None:
        self.policy = make_policy(num_blocks, block_size, 40, max_num_requests + extra, max_num_requests, 1000)
        self.requests: list[Request] = []
        self.ended: list[Request] = []

    @rule(num_prompt=st.integers(1, 20), max_tokens=st.integers(0, 12))
    def add(self, num_prompt: int, max_tokens: int) -> None:
        request = make_request(str(len(self.requests)), num_prompt, max_tokens)
        try:
            self.policy.add(request)
        except ContextLengthError:
            assert num_prompt + max_tokens > min(40, self.policy.config.num_blocks * self.policy.config.block_size)
        else:
            self.requests.append(request)

    @precondition(lambda self: any(r.stage is not Stage.FINISHED for r in self.requests))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([r for r in self.requests if r.stage is not Stage.FINISHED]))
        self.policy.finish(request, "abort")
        self.ended.append(request)

    @rule(token_id=st.sampled_from([1, 2, 3, STOP_ID]), num_steps=st.integers(1, 4))
    def run(self, token_id: int, num_steps: int) -> None:
        for _ in range(num_steps):
            self.take_step(token_id)

    def take_step(self, token_id: int) -> None:
        had_work = self.policy.has_work
        before = {request: request.num_preemptions for request in self.requests}
        schedule = self.policy.plan()
        assert all(request.num_preemptions == before[request] for request in schedule), "one step must not preempt and admit a request"
        assert bool(schedule) == had_work, "a step with work must advance someone"
        assert sum(schedule.values()) <= self.policy.config.max_batch_tokens
        assert len(self.policy.running) <= self.policy.config.max_num_requests
        if schedule:
            earliest = min((r for r in self.requests if r.stage is not Stage.FINISHED), key=lambda r: r.arrival)
            assert earliest in schedule, "the earliest request must advance in every step"
        for request, num_tokens in schedule.items():
            assert 1 <= num_tokens <= request.num_pending_tokens
            assert len(request.block_ids) * self.policy.config.block_size >= request.num_computed_tokens + num_tokens
        self.ended += self.policy.commit(schedule, execute(schedule, [token_id]))

    @invariant()
    def every_block_is_free_or_owned_once(self) -> None:
        owned = [block_id for r in self.requests for block_id in r.block_ids]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.policy.blocks.num_free == self.policy.config.num_blocks
        assert all(not r.block_ids for r in self.requests if r.stage is not Stage.RUNNING)

    @invariant()
    def order_is_by_arrival(self) -> None:
        arrivals = [r.arrival for r in self.policy.requests()]
        assert arrivals == sorted(arrivals)

    @invariant()
    def everything_ends_at_most_once(self) -> None:
        assert len(self.ended) == len(set(self.ended))
        assert {r for r in self.requests if r.stage is Stage.FINISHED} == set(self.ended)

    def teardown(self) -> None:
        if not hasattr(self, "policy"):
            return
        for _ in range(40 * len(self.requests) + 1):
            self.take_step(1)
        assert len(self.ended) == len(self.requests), "everything ends"
        assert self.policy.blocks.num_free == self.policy.config.num_blocks
        assert self.policy.reclaim() == 0
        for request in self.requests:
            if request.finish_reason == "length":
                assert len(request.output_ids) == request.max_tokens


TestSchedulerLaws = SchedulerLaws.TestCase
TestSchedulerLaws.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
