"""What holds whatever is asked, in whatever order: thousands of schedules against an executor that reads tokens through the blocks."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.policy.block_reader import BlockReader, answer_alone, next_token
from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.policy import Policy
from tripod.engine.policy.request import Request, Stage
from tripod.errors import ContextLengthError, OverloadedError
from tripod.sampling import SamplingParams

MAX_CONTEXT = 40
STOP_IDS = frozenset({7})
LONG = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 2, 6, 4, 3, 3, 2, 3, 0, 4]  # most prompts begin with a piece of it, so they share blocks


class PolicyLaws(RuleBasedStateMachine):
    """Adds, forks, aborts, deadlines, drafts, preemptions and steps at random; the laws hold after each, and at the end all has ended."""

    @initialize(
        num_blocks=st.integers(1, 14),
        block_size=st.integers(1, 5),
        max_num_requests=st.integers(1, 5),
        extra=st.integers(0, 12),
        prefix_cache=st.sampled_from([True, True, True, False]),
        max_waiting_tokens=st.sampled_from([None, None, 60]),
        fair=st.booleans(),
        chunk_beside_decodes=st.sampled_from([None, None, 1, 3]),
    )
    def build(
        self,
        num_blocks: int,
        block_size: int,
        max_num_requests: int,
        extra: int,
        prefix_cache: bool,
        max_waiting_tokens: int | None,
        fair: bool,
        chunk_beside_decodes: int | None,
    ) -> None:
        self.config = PolicyConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_context=MAX_CONTEXT,
            max_batch_tokens=max_num_requests + extra,
            max_num_requests=max_num_requests,
            max_num_waiting=12,
            max_waiting_tokens=max_waiting_tokens,
            prefix_cache=prefix_cache,
            fair=fair,
            chunk_beside_decodes=chunk_beside_decodes,
        )
        self.policy = Policy(self.config)
        self.executor = self.make_executor(num_blocks, block_size)
        self.now = 0.0
        self.requests: list[Request] = []
        self.ended: list[Request] = []

    def make_executor(self, num_blocks: int, block_size: int) -> BlockReader:
        return BlockReader(num_blocks, block_size)

    def answer_alone(self, request: Request) -> list[int]:
        return answer_alone(request.prompt_ids, request.max_tokens, STOP_IDS)

    def request(self, prompt_ids: list[int], max_tokens: int, data: st.DataObject) -> Request:
        return Request(
            id=str(len(self.requests)),
            prompt_ids=tuple(prompt_ids),
            sampling=SamplingParams(),
            max_tokens=max_tokens,
            stop_ids=STOP_IDS,
            score_from=data.draw(st.sampled_from([None, None, None, 1, len(prompt_ids) // 2])),
            priority=data.draw(st.integers(-1, 2)),
            tenant=data.draw(st.sampled_from(["", "a", "b"])),
            deadline_s=data.draw(st.sampled_from([None, None, self.now + 3.0])),
        )

    @rule(shared=st.integers(0, 20), own=st.lists(st.integers(0, 7), max_size=6), max_tokens=st.integers(0, 12), data=st.data())
    def add(self, shared: int, own: list[int], max_tokens: int, data: st.DataObject) -> None:
        request = self.request([*LONG[:shared], *own] or [0], max_tokens, data)
        try:
            self.policy.add(request, self.now)
        except ContextLengthError:
            assert len(request.prompt_ids) + max_tokens > self.config.max_request_tokens
        except OverloadedError:
            assert len(self.policy.waiting) > 0
        else:
            self.requests.append(request)

    @precondition(lambda self: bool(self.policy.running))
    @rule(more=st.lists(st.integers(0, 7), max_size=2), max_tokens=st.integers(0, 12), is_cut=st.booleans(), data=st.data())
    def fork(self, more: list[int], max_tokens: int, is_cut: bool, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(self.policy.running))
        known = source.token_ids(0, source.num_tokens)
        new = self.request([*known[: data.draw(st.integers(1, len(known))) if is_cut else len(known)], *more], max_tokens, data)
        try:
            self.policy.fork(source, new, self.now)
        except (ContextLengthError, OverloadedError):
            return
        self.requests.append(new)

    @precondition(lambda self: self.policy.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.policy.requests())))
        self.policy.finish(request, "abort")
        self.ended.append(request)

    @precondition(lambda self: bool(self.policy.running))
    @rule(num_right=st.integers(0, 4), num_wrong=st.integers(0, 2), data=st.data())
    def draft(self, num_right: int, num_wrong: int, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.policy.running))
        token_ids = request.token_ids(0, request.num_tokens)
        request.draft_ids = []
        for _ in range(num_right):
            request.draft_ids.append(next_token([*token_ids, *request.draft_ids]))
        for _ in range(num_wrong):
            request.draft_ids.append((next_token([*token_ids, *request.draft_ids]) + 1) % 8)

    @rule(seconds=st.floats(0.0, 2.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        expired = self.policy.expire(self.now)
        assert all(request.deadline_s is not None and request.deadline_s <= self.now for request in expired)
        self.ended += expired

    @rule(num_steps=st.integers(1, 4))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.take_step()

    def take_step(self) -> None:
        had_work = self.policy.has_work
        first = self.policy.running[0] if self.policy.running else None
        num_preemptions = {request: request.num_preemptions for request in self.requests}
        schedule = self.policy.plan(self.now)
        assert all(request.num_preemptions == num_preemptions[request] for request in schedule), "preempted and admitted in one step"
        assert bool(schedule) == had_work, "a step with work must advance someone"
        assert sum(schedule.values()) <= self.config.max_batch_tokens
        assert len(self.policy.running) <= self.config.max_num_requests
        assert first is None or first in schedule, "the first in order must advance in every step"
        for request, num_tokens in schedule.items():
            assert 1 <= num_tokens <= request.num_pending_tokens + len(request.draft_ids)
            assert len(request.block_ids) * self.config.block_size >= request.num_computed_tokens + num_tokens
            if request.num_scored_tokens < len(request.prompt_ids):
                assert request.num_computed_tokens < request.num_scored_tokens, "a token whose score is wanted came from the cache"
        finished = self.policy.commit(schedule, self.executor.run(self.policy, schedule), self.now)
        self.ended += finished

    @invariant()
    def blocks_add_up(self) -> None:
        owned = Counter(block_id for request in self.requests for block_id in request.block_ids)
        blocks = self.policy.blocks
        assert all(blocks.num_owners(block_id) == owned[block_id] for block_id in range(self.config.num_blocks))
        assert len(owned) + blocks.num_free + blocks.num_cached == self.config.num_blocks
        assert all(not request.block_ids for request in self.requests if request.stage is not Stage.RUNNING)
        assert self.config.prefix_cache or blocks.num_cached == 0

    @invariant()
    def blocks_hold_the_tokens_that_are_computed(self) -> None:
        for request in self.policy.running:
            num_tokens = request.num_computed_tokens
            assert self.executor.read(request, num_tokens) == request.token_ids(0, num_tokens)
        if self.policy.blocks.cache is not None:
            for node in self.policy.blocks.cache.nodes():
                assert tuple(self.executor.blocks[node.block_id]) == node.token_ids

    @invariant()
    def running_requests_are_in_order(self) -> None:
        orders = [request.order for request in self.policy.running]
        assert orders == sorted(orders)

    @invariant()
    def the_queue_counts_what_waits(self) -> None:
        waiting = list(self.policy.waiting)
        assert len(self.policy.waiting) == len(waiting) == sum(request.stage is Stage.WAITING for request in self.requests)
        assert self.policy.waiting.num_tokens == sum(request.num_tokens for request in waiting)

    @invariant()
    def everything_ends_at_most_once_and_says_what_it_says_alone(self) -> None:
        assert len(self.ended) == len(set(self.ended))
        assert {request for request in self.requests if request.stage is Stage.FINISHED} == set(self.ended)
        for request in self.requests:
            alone = self.answer_alone(request)
            if request.finish_reason in ("stop", "length"):
                assert request.output_ids == alone
            else:
                assert request.output_ids == alone[: len(request.output_ids)]

    def teardown(self) -> None:
        if not hasattr(self, "policy"):
            return
        for _ in range(MAX_CONTEXT * len(self.requests) + 1):
            if self.policy.has_work:
                self.take_step()
        assert len(self.ended) == len(self.requests), "everything ends"
        assert self.policy.blocks.num_available == self.config.num_blocks
        assert self.policy.reclaim() == 0
        self.everything_ends_at_most_once_and_says_what_it_says_alone()


TestPolicyLaws = PolicyLaws.TestCase
TestPolicyLaws.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
