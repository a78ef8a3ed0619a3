"""The decisions of the scheduler that users feel, one by one; what always holds is in test_laws.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tripod.engine.policy.config import PolicyConfig
from tripod.engine.policy.policy import Policy, Schedule
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
    **more: Any,
) -> Policy:
    return Policy(
        PolicyConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            max_context=max_context,
            max_batch_tokens=max_batch_tokens,
            max_num_requests=max_num_requests,
            max_num_waiting=max_num_waiting,
            **more,
        )
    )


def make_request(name: str, num_prompt: int, max_tokens: int, **sampling: int) -> Request:
    first = 1000 * ord(name[0])  # prompts that begin differently share nothing
    return Request(
        id=name,
        prompt_ids=tuple(range(first, first + num_prompt)),
        sampling=SamplingParams(**sampling),
        max_tokens=max_tokens,
        stop_ids=frozenset({STOP_ID}),
    )


def execute(schedule: Schedule, token_ids: Sequence[int] = (1,)) -> dict[Request, Sequence[int]]:
    """What an executor gives back: new tokens for each request whose known tokens are then all computed."""
    return {r: token_ids for r, n in schedule.items() if r.num_computed_tokens + n == r.num_tokens and r.max_tokens > 0}


def step(policy: Policy) -> dict[str, int]:
    schedule = policy.plan(0.0)
    policy.commit(schedule, execute(schedule), 0.0)
    return {request.id: num_tokens for request, num_tokens in schedule.items()}


def test_a_long_prompt_is_cut_into_chunks_that_fill_what_decodes_leave_of_the_budget() -> None:
    policy = make_policy(max_batch_tokens=8)
    policy.add(make_request("short", 3, 4), 0.0)
    policy.add(make_request("long", 18, 1), 0.0)
    assert step(policy) == {"short": 3, "long": 5}
    assert step(policy) == {"short": 1, "long": 7}
    assert step(policy) == {"short": 1, "long": 6}
    assert step(policy) == {"short": 1}
    assert step(policy) == {}


def test_a_long_prompt_takes_short_steps_while_others_decode_and_short_prompts_still_come_in_together() -> None:
    policy = make_policy(max_batch_tokens=16, chunk_beside_decodes=3)
    policy.add(make_request("a", 2, 9), 0.0)
    policy.add(make_request("b", 2, 9), 0.0)
    assert step(policy) == {"a": 2, "b": 2}
    for name, num_prompt in (("long", 12), ("short", 3), ("other", 4)):
        policy.add(make_request(name, num_prompt, 2), 0.0)
    assert step(policy) == {"a": 1, "b": 1, "long": 5, "short": 3}  # of 4 places
    assert step(policy) == {"a": 1, "b": 1, "short": 1, "long": 6}
    assert step(policy) == {"a": 1, "b": 1, "long": 1, "other": 4}


def test_a_long_prompt_alone_fills_whole_steps() -> None:
    policy = make_policy(max_batch_tokens=16, chunk_beside_decodes=3)
    policy.add(make_request("long", 20, 1), 0.0)
    assert step(policy) == {"long": 16}
    assert step(policy) == {"long": 4}


def test_the_queue_is_never_overtaken() -> None:
    policy = make_policy(num_blocks=4, block_size=4)
    policy.add(make_request("first", 8, 2), 0.0)
    policy.add(make_request("big", 12, 2), 0.0)
    policy.add(make_request("small", 1, 2), 0.0)
    assert step(policy) == {"first": 8}  # "big" needs 3 of the 2 free blocks; "small" would fit, and waits its turn
    assert [request.id for request in policy.waiting] == ["big", "small"]


def test_admission_leaves_a_block_for_each_running_request() -> None:
    policy = make_policy(num_blocks=4, block_size=2)
    for name in ("a", "b", "c"):
        policy.add(make_request(name, 2, 3), 0.0)
    assert step(policy) == {"a": 2, "b": 2}  # c would take the third block, and only one would be left for two to grow
    assert step(policy) == {"a": 1, "b": 1}
    assert policy.num_preemptions == 0


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_the_latest_request_is_preempted_and_computed_again(prefix_cache: bool) -> None:
    policy = make_policy(num_blocks=5, block_size=2, max_batch_tokens=16, prefix_cache=prefix_cache)
    early, late = make_request("early", 2, 6), make_request("late", 2, 6)
    policy.add(early, 0.0)
    policy.add(late, 0.0)
    assert step(policy) == {"early": 2, "late": 2}
    assert step(policy) == {"early": 1, "late": 1}  # 2 blocks each
    assert step(policy) == {"early": 1, "late": 1}
    assert step(policy) == {"early": 1}  # early takes the fifth block; late finds none
    assert late.stage is Stage.WAITING
    assert late.num_preemptions == policy.num_preemptions == 1
    assert late.output_ids == [1, 1, 1]  # what was generated is kept
    while early.stage is Stage.RUNNING:
        step(policy)
    assert step(policy) == {"late": 3 if prefix_cache else 5}  # prompt and output in one go, but for a block that nobody needed since
    while policy.has_work:
        step(policy)
    assert (early.output_ids, late.output_ids) == ([1] * 6, [1] * 6)


def test_a_stop_token_ends_a_request_after_min_tokens_only() -> None:
    policy = make_policy()
    request = make_request("r", 2, 9, min_tokens=2)
    policy.add(request, 0.0)
    for token_id in (STOP_ID, STOP_ID, STOP_ID):
        schedule = policy.plan(0.0)
        policy.commit(schedule, execute(schedule, [token_id]), 0.0)
    assert request.output_ids == [STOP_ID] * 3
    assert request.finish_reason == "stop"


def test_several_tokens_of_one_step_are_cut_at_the_end() -> None:
    policy = make_policy()
    stopped, full = make_request("stopped", 1, 9), make_request("full", 1, 2)
    policy.add(stopped, 0.0)
    policy.add(full, 0.0)
    schedule = policy.plan(0.0)
    assert policy.commit(schedule, {stopped: [4, STOP_ID, 5], full: [1, 2, 3]}, 0.0) == [stopped, full]
    assert (stopped.output_ids, stopped.finish_reason) == ([4, STOP_ID], "stop")
    assert (full.output_ids, full.finish_reason) == ([1, 2], "length")


def test_a_request_for_no_tokens_ends_with_its_prompt() -> None:
    policy = make_policy(max_batch_tokens=4)
    request = make_request("score", 6, 0)
    policy.add(request, 0.0)
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
        policy.add(make_request("r", 30, 3), 0.0)
    with pytest.raises(ContextLengthError, match=r"40 tokens .* the model's context holds 32") as refused:
        make_policy(max_context=32).add(make_request("r", 40, 1), 0.0)
    assert refused.value.param == "prompt"
    assert not policy.has_work


def test_max_tokens_none_means_what_the_context_leaves() -> None:
    config = make_policy(max_context=50).config
    assert config.resolve_max_tokens(20, None) == 30
    with pytest.raises(ContextLengthError, match="50 tokens and the answer may take 1"):
        config.resolve_max_tokens(50, None)


def test_a_full_queue_refuses_more() -> None:
    policy = make_policy(max_num_waiting=1)
    policy.add(make_request("a", 1, 1), 0.0)
    with pytest.raises(OverloadedError, match="1 requests are waiting"):
        policy.add(make_request("b", 1, 1), 0.0)


def test_limits_that_no_request_could_meet_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_blocks=0"):
        make_policy(num_blocks=0)
    with pytest.raises(ConfigError, match="max_batch_tokens=3 is less than max_num_requests=4"):
        make_policy(max_batch_tokens=3)


def test_finishing_twice_changes_nothing() -> None:
    policy = make_policy()
    request = make_request("r", 3, 3)
    policy.add(request, 0.0)
    step(policy)
    policy.finish(request, "abort")
    policy.finish(request, "stop")
    assert request.finish_reason == "abort"
    assert policy.blocks.num_free == 100


# --- the prefix cache in the plan


def ask(name: str, prompt_ids: Sequence[int], max_tokens: int = 1, **fields: Any) -> Request:
    return Request(id=name, prompt_ids=tuple(prompt_ids), sampling=SamplingParams(), max_tokens=max_tokens, **fields)


def run_alone(policy: Policy, request: Request, now: float = 0.0) -> list[int]:
    """The numbers of tokens that its steps computed."""
    policy.add(request, now)
    computed = []
    while request.stage is not Stage.FINISHED:
        schedule = policy.plan(now)
        computed.append(schedule[request])
        policy.commit(schedule, execute(schedule), now)
    return computed


def test_a_prompt_that_was_computed_before_is_taken_from_the_cache_but_for_its_end() -> None:
    policy = make_policy(block_size=4)
    assert run_alone(policy, ask("first", range(10))) == [10]
    again, longer, exact = ask("again", range(10)), ask("longer", range(15)), ask("exact", range(8))
    assert run_alone(policy, again) == [2]  # two full blocks of four
    assert run_alone(policy, longer) == [7]
    assert run_alone(policy, exact) == [4]  # the last token must be computed, and its block with it
    assert [r.num_cached_tokens for r in (again, longer, exact)] == [8, 8, 4]
    assert (policy.blocks.num_free, policy.blocks.num_cached) == (97, 3)


def test_an_answer_is_cached_as_well() -> None:
    policy = make_policy(block_size=4)
    first = ask("first", range(6), max_tokens=7)
    run_alone(policy, first)
    next_turn = ask("next turn", [*first.prompt_ids, *first.output_ids, 99])
    run_alone(policy, next_turn)
    assert next_turn.num_cached_tokens == 12  # of 13 known tokens, the last was never computed


def test_a_prompt_whose_scores_are_wanted_is_computed() -> None:
    policy = make_policy(block_size=4)
    run_alone(policy, ask("first", range(14)))
    whole, half = ask("whole", range(14), score_from=1), ask("half", range(14), score_from=9)
    assert run_alone(policy, whole) == [14]
    assert run_alone(policy, half) == [6]  # the row of token 8 scores token 9
    assert str(half.cache_miss) == "log-probabilities of the prompt were asked for, so its tokens from 8 on were computed"


def test_a_cache_that_is_off_computes_everything_and_keeps_nothing() -> None:
    policy = make_policy(block_size=4, prefix_cache=False)
    again = ask("again", range(10))
    assert run_alone(policy, ask("first", range(10))) == run_alone(policy, again) == [10]
    assert (policy.blocks.num_free, again.cache_miss) == (100, None)


def test_a_request_says_why_its_prompt_was_not_cached() -> None:
    policy = make_policy(num_blocks=4, block_size=4)
    first, differs, unseen = ask("first", range(8)), ask("differs", [0, 1, 2, 3, 4, 5, 90, 7, 8]), ask("unseen", range(50, 60))
    for request in (first, differs):
        run_alone(policy, request, now=1.0)
    run_alone(policy, unseen, now=2.0)  # takes the place of the others
    evicted = ask("evicted", range(9))
    run_alone(policy, evicted, now=14.5)
    assert str(first.cache_miss) == "nothing like the tokens from 0 on is in the cache"
    assert str(differs.cache_miss) == "token 6 is 90; the closest cached sequence has 6 there"
    assert str(unseen.cache_miss) == "nothing like the tokens from 0 on is in the cache"
    assert str(evicted.cache_miss) == "the tokens from 4 on were cached and were evicted 12.5 s ago, to make room"
    assert (differs.num_cached_tokens, evicted.num_cached_tokens) == (4, 4)


def test_siblings_wait_for_the_blocks_that_one_of_them_computes() -> None:
    policy = make_policy(block_size=4, max_batch_tokens=16, max_num_requests=4)
    for name in ("a1", "a2", "a3"):
        policy.add(ask(name, range(30), max_tokens=2), 0.0)
    policy.add(ask("b", range(100, 103), max_tokens=9), 0.0)
    assert step(policy) == {"a1": 16}
    assert step(policy) == {"a1": 14, "b": 2}  # what a2 and a3 need next is being computed: b passes
    assert step(policy) == {"a1": 1, "a2": 2, "a3": 2, "b": 1}  # 28 of their 30 tokens are at hand


# --- forks


def test_a_branch_shares_all_blocks_and_copies_the_last_when_it_writes() -> None:
    policy = make_policy(block_size=4)
    trunk = ask("trunk", range(6), max_tokens=4)
    policy.add(trunk, 0.0)
    step(policy)
    branch = ask("branch", [*trunk.prompt_ids, *trunk.output_ids], max_tokens=3)
    policy.fork(trunk, branch, 0.0)
    assert branch.block_ids == trunk.block_ids
    shared = list(trunk.block_ids)
    schedule = policy.plan(0.0)
    assert {request.id: n for request, n in schedule.items()} == {"trunk": 1, "branch": 1}
    assert policy.take_copies() == [(shared[1], trunk.block_ids[1])]  # who writes first takes the copy, the other keeps the block
    assert (branch.block_ids, trunk.block_ids[0]) == (shared, shared[0])
    assert policy.take_copies() == []
    policy.commit(schedule, execute(schedule), 0.0)
    policy.finish(trunk, "abort")
    policy.finish(branch, "abort")
    assert policy.blocks.num_available == 100


def test_a_branch_with_tokens_of_its_own_shares_the_full_blocks_only() -> None:
    policy = make_policy(block_size=4)
    trunk = ask("trunk", range(6), max_tokens=4)
    policy.add(trunk, 0.0)
    step(policy)
    branch = ask("branch", [*range(6), 50, 51])
    policy.fork(trunk, branch, 0.0)
    assert branch.block_ids[0] == trunk.block_ids[0]
    assert branch.block_ids[1] != trunk.block_ids[1]
    assert step(policy) == {"trunk": 1, "branch": 4}


def test_a_fork_without_a_place_is_queued() -> None:
    policy = make_policy(block_size=4, max_num_requests=1)
    trunk, branch = ask("trunk", range(6), max_tokens=4), ask("branch", range(7))
    policy.add(trunk, 0.0)
    step(policy)
    policy.fork(trunk, branch, 0.0)
    assert list(policy.waiting) == [branch]


# --- drafts


def test_drafts_ride_with_the_pending_token_and_wrong_ones_are_taken_back() -> None:
    policy = make_policy(block_size=2, max_batch_tokens=8)
    request = ask("r", range(3), max_tokens=20)
    policy.add(request, 0.0)
    step(policy)
    request.draft_ids = [11, 12, 13, 14]
    schedule = policy.plan(0.0)
    assert schedule == {request: 5}
    assert request.token_ids(2, 8) == [2, 1, 11, 12, 13, 14]
    assert len(request.block_ids) == 4
    policy.commit(schedule, {request: [11, 12, 77]}, 0.0)  # two drafts were right
    assert request.output_ids == [1, 11, 12, 77]
    assert (request.num_computed_tokens, request.num_pending_tokens, request.draft_ids) == (6, 1, [])
    assert len(request.block_ids) == 4  # for seven tokens; what eight would need beside them is the same
    request.draft_ids = [21, 22, 23, 24]
    schedule = policy.plan(0.0)
    policy.commit(schedule, {request: [99]}, 0.0)
    assert len(request.block_ids) == 4  # eight tokens; the blocks of four wrong drafts are free again


def test_drafts_take_only_what_is_left_of_budget_blocks_and_answer() -> None:
    policy = make_policy(block_size=4, max_batch_tokens=8)
    speculative, plain = ask("s", range(3), max_tokens=20), ask("p", range(50, 62), max_tokens=1)
    policy.add(speculative, 0.0)
    step(policy)
    policy.add(plain, 0.0)
    speculative.draft_ids = [1, 2, 3]
    assert step(policy) == {"s": 1, "p": 7}
    speculative.draft_ids = [1, 2, 3, 4]
    assert step(policy) == {"s": 3, "p": 5}
    short = ask("short", range(80, 83), max_tokens=3)
    policy.add(short, 0.0)
    step(policy)
    short.draft_ids = [1, 1, 1]
    assert step(policy)["short"] == 2  # two tokens are left to give, so one draft can be right


# --- order, deadlines


def test_lower_priorities_run_first_until_others_have_waited_for_long() -> None:
    policy = make_policy(max_num_requests=1, aging_s=10.0)
    for name, priority, now in (("batch", 2, 0.0), ("later", 0, 5.0), ("urgent", -1, 19.0), ("patience", 0, 21.0)):
        policy.add(ask(name, [1, 2], priority=priority), now)
    order = []
    while policy.has_work:
        order += step(policy)
    assert order == ["later", "urgent", "batch", "patience"]  # batch counts as come at 20 s, urgent at 9 s


def test_strict_priorities_do_not_age() -> None:
    policy = make_policy(max_num_requests=1, aging_s=None)
    policy.add(ask("batch", [1, 2], priority=1), 0.0)
    policy.add(ask("plain", [1, 2]), 1e6)
    assert step(policy) == {"plain": 2}


def test_the_request_of_least_priority_gives_up_its_blocks() -> None:
    policy = make_policy(num_blocks=5, block_size=2, max_batch_tokens=16)
    batch, plain = ask("batch", [1, 2], 6, priority=1), ask("plain", [3, 4], 6)
    policy.add(batch, 0.0)
    policy.add(plain, 1.0)
    while not policy.num_preemptions:
        step(policy)
    assert (batch.stage, plain.stage) == (Stage.WAITING, Stage.RUNNING)


def test_a_passed_deadline_ends_whoever_waits_or_runs_and_nobody_else() -> None:
    policy = make_policy(max_num_requests=1)
    running, waiting, patient = ask("r", [1], 50, deadline_s=5.0), ask("w", [2], 50, deadline_s=3.0), ask("p", [3], 2)
    for request in (running, waiting, patient):
        policy.add(request, 0.0)
    step(policy)
    assert policy.expire(2.9) == []
    assert policy.expire(3.0) == [waiting]
    assert policy.expire(9.0) == [running]
    assert step(policy) == {"p": 1}
    policy.finish(patient, "abort")
    assert policy.blocks.num_available == 100
