"""The whole engine: exact under batching, chunking and preemption; every end is clean; every failure is one request's own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import PROMPTS, make_model, plain_greedy, plain_logits
from tripod.engine import step_loop
from tripod.engine.engine import Engine, EngineConfig, EngineStats
from tripod.engine.execution.runner import Runner, StepResult
from tripod.engine.step_loop import Stream
from tripod.engine.step_record import StepRecord
from tripod.errors import ContextLengthError, EngineError, NotFoundError, OverloadedError, RequestError
from tripod.messages import Reply
from tripod.models.gpt_neox import GPTNeoXConfig
from tripod.models.initialize import random_language_model
from tripod.models.language_model import LanguageModel
from tripod.models.llama2c import load_llama2c
from tripod.ops.attention import Attend
from tripod.ops.rope import RopeConfig
from tripod.sampling import SamplingParams
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.trace import Delta, Event, Finished

ROOMY = EngineConfig(kv_tokens=8192)
TIGHT = EngineConfig(kv_tokens=288, block_size=8)  # a few of the sixteen prompts at once
CHUNKED = EngineConfig(kv_tokens=8192, max_batch_tokens=7, max_num_requests=7)
SINGLE_TOKENS = EngineConfig(kv_tokens=8192, block_size=1, max_batch_tokens=1, max_num_requests=1)
TIGHT_AND_CHUNKED = EngineConfig(kv_tokens=256, block_size=4, max_batch_tokens=20, max_num_requests=12)


def greedy(max_tokens: int, **params: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **params)


def with_engine(
    model: LanguageModel, tokenizer: Tokenizer, config: EngineConfig, use: Callable[[Engine], Awaitable[Any]]
) -> tuple[Any, EngineStats]:
    """What `use` returns, and the engine's counts once it is idle; all its blocks must be free then."""

    async def main() -> tuple[Any, EngineStats]:
        async with Engine(model, tokenizer, config, name="test") as engine:
            result = await use(engine)
            stats = await until_idle(engine)
        assert stats.free_blocks + stats.cached_blocks == stats.total_blocks
        assert stats.leaked_blocks == 0
        return result, stats

    return asyncio.run(main())


async def until_idle(engine: Engine) -> EngineStats:
    for _ in range(2000):
        stats = engine.stats()
        if stats.running == stats.waiting == 0:
            return stats
        await asyncio.sleep(0.005)
    raise AssertionError(f"the engine did not become idle: {engine.stats()}")


def together(prompts: Sequence[str | list[int]], params: SamplingParams) -> Callable[[Engine], Awaitable[list[Reply]]]:
    async def use(engine: Engine) -> list[Reply]:
        return list(await asyncio.gather(*(engine.generate(prompt, params) for prompt in prompts)))

    return use


@pytest.mark.parametrize(
    "config", [ROOMY, TIGHT, CHUNKED, SINGLE_TOKENS, TIGHT_AND_CHUNKED], ids=["roomy", "tight", "chunked", "one token", "both"]
)
def test_greedy_tokens_equal_the_plain_way_whatever_the_schedule(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]], config: EngineConfig
) -> None:
    replies, stats = with_engine(model, tokenizer, config, together(PROMPTS, greedy(24)))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert list(reply.token_ids) == greedy_answers[prompt], prompt
        assert reply.text == tokenizer.decode(greedy_answers[prompt])
        assert reply.finish_reason == "length"
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt.encode()), 24)
    assert (stats.preemptions > 0) == (config in (TIGHT, TIGHT_AND_CHUNKED)), stats


def test_pythias_architecture_runs_as_exactly(tokenizer: Tokenizer) -> None:
    config = GPTNeoXConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, max_positions=128, rope=RopeConfig(rotary_dim=2)
    )
    neox = random_language_model(config, 5)
    prompts = PROMPTS[:8]
    replies, stats = with_engine(neox, tokenizer, EngineConfig(kv_tokens=192, block_size=8), together(prompts, greedy(24)))
    assert [list(reply.token_ids) for reply in replies] == [plain_greedy(neox, tokenizer.encode(prompt), 24) for prompt in prompts]
    assert stats.preemptions > 0


def test_a_sliding_window_is_kept_across_chunks_and_decodes(tokenizer: Tokenizer) -> None:
    sliding = make_model(seed=4, windows=(None, 9, 9))
    prompts = PROMPTS[:6]
    expected = [plain_greedy(sliding, tokenizer.encode(prompt), 16) for prompt in prompts]
    assert expected != [plain_greedy(make_model(seed=4), tokenizer.encode(prompt), 16) for prompt in prompts], "the window must matter"
    replies, _ = with_engine(sliding, tokenizer, CHUNKED, together(prompts, greedy(16)))
    assert [list(reply.token_ids) for reply in replies] == expected


def test_the_trained_model_tells_its_known_story(stories: Path) -> None:
    model, tokenizer = load_llama2c(stories / "stories260K.bin"), load_tokenizer(stories)
    golden = (stories / "greedy-golden.txt").read_text(encoding="utf-8").removesuffix("\n")
    starts = [
        "Tom and",
        "The cat",
        "One day",
        "Lily",
        "A big dog",
        "It was",
        "Once there",
        "Mom said",
        "In the park",
        "He",
        "She ran",
        "My",
        "Sam",
        "Why",
        "Zoo",
    ]
    asked: list[tuple[str | list[int], SamplingParams]] = [([1], greedy(256)), *((start, greedy(80)) for start in starts)]

    async def one_by_one() -> list[Reply]:
        async with Engine.load(str(stories / "stories260K.bin"), config=ROOMY) as engine:
            return [await engine.generate(prompt, params) for prompt, params in asked]

    async def at_once(engine: Engine) -> list[Reply]:
        return list(await asyncio.gather(*(engine.generate(prompt, params) for prompt, params in asked)))

    alone = asyncio.run(one_by_one())
    assert alone[0].text == golden
    for start, reply in zip(starts, alone[1:], strict=True):  # the space between prompt and answer is neither lost nor doubled
        assert tokenizer.decode([*tokenizer.encode(start), *reply.token_ids]) == start + reply.text
    for config in (
        ROOMY,
        EngineConfig(kv_tokens=1024, block_size=8),
        EngineConfig(kv_tokens=1024, max_batch_tokens=16, max_num_requests=16),
    ):
        replies, stats = with_engine(model, tokenizer, config, at_once)
        assert [reply.text for reply in replies] == [reply.text for reply in alone]
        assert (stats.preemptions > 0) == (config.kv_tokens == 1024)


async def _one_by_one(engine: Engine, prompts: Sequence[str | list[int]], params: SamplingParams) -> list[Reply]:
    return [await engine.generate(prompt, params) for prompt in prompts]


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_after_preemption(model: LanguageModel, tokenizer: Tokenizer) -> None:
    def params(seed: int) -> SamplingParams:
        return SamplingParams(temperature=0.9, top_p=0.95, seed=seed, max_tokens=24, ignore_eos=True, frequency_penalty=0.3)

    async def alone(engine: Engine) -> list[Reply]:
        return [await engine.generate(prompt, params(seed)) for seed, prompt in enumerate(PROMPTS)]

    async def batched(engine: Engine) -> list[Reply]:
        return list(await asyncio.gather(*(engine.generate(prompt, params(seed)) for seed, prompt in enumerate(PROMPTS))))

    expected, _ = with_engine(model, tokenizer, ROOMY, alone)
    for config in (ROOMY, TIGHT_AND_CHUNKED):
        replies, _ = with_engine(model, tokenizer, config, batched)
        assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in expected]
    others, _ = with_engine(model, tokenizer, ROOMY, lambda engine: _one_by_one(engine, PROMPTS[:3], params(99)))
    assert all(other.token_ids != reply.token_ids for other, reply in zip(others, expected, strict=False))


def test_without_a_seed_each_request_draws_its_own(model: LanguageModel, tokenizer: Tokenizer) -> None:
    replies, _ = with_engine(model, tokenizer, ROOMY, together(["same"] * 4, SamplingParams(max_tokens=24, ignore_eos=True)))
    assert len({reply.token_ids for reply in replies}) == 4


@pytest.mark.parametrize("config", [ROOMY, TIGHT_AND_CHUNKED, SINGLE_TOKENS], ids=["roomy", "tight", "one token"])
def test_scores_and_prompt_logprobs_equal_log_softmax_of_the_plain_way(
    model: LanguageModel, tokenizer: Tokenizer, config: EngineConfig
) -> None:
    prompt, continuation = tokenizer.encode("the quick brown fox "), tokenizer.encode("jumps")
    expected = plain_logits(model, [*prompt, *continuation]).double().log_softmax(-1)

    async def use(engine: Engine) -> tuple[Any, Any, list[Event]]:
        crowd = [asyncio.create_task(engine.generate(other, greedy(20))) for other in PROMPTS[:6]]
        score = await engine.score(prompt, continuation)
        greedily = plain_greedy(model, prompt, 4)
        best = await engine.score(prompt, greedily)
        assert not (await engine.score(prompt, [*greedily, (plain_greedy(model, [*prompt, *greedily], 1)[0] + 1) % 256])).is_greedy
        events = [event async for event in engine.stream(prompt, greedy(2, prompt_logprobs=2))]
        await asyncio.gather(*crowd)
        return score, best, events

    (score, best, events), _ = with_engine(model, tokenizer, config, use)
    wanted = [float(expected[len(prompt) - 1 + i, token_id]) for i, token_id in enumerate(continuation)]
    assert score.logprobs == pytest.approx(wanted, abs=1e-5)  # float32 logits
    assert score.total == pytest.approx(sum(wanted), abs=1e-4)
    assert not score.is_greedy
    assert best.is_greedy
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.prompt_logprobs[0] is None
    assert len(finished.prompt_logprobs) == len(prompt)
    for position, entry in enumerate(finished.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert (entry.token_id, entry.token_bytes) == (prompt[position], bytes([prompt[position]]))
        assert entry.logprob == pytest.approx(float(expected[position - 1, prompt[position]]), abs=1e-5)
        assert [top.token_id for top in entry.top] == expected[position - 1].argsort(descending=True)[:2].tolist()


def test_a_prompt_is_scored_in_pieces_as_it_is_at_once(model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokenizer.encode("the quick brown fox")

    async def use(engine: Engine) -> Any:
        return await engine.score(prompt[:2], prompt[2:])

    monkeypatch.setattr("tripod.engine.execution.runner._SCORED_ROWS", 4)
    score, _ = with_engine(model, tokenizer, ROOMY, use)
    expected = plain_logits(model, prompt).double().log_softmax(-1)
    wanted = [float(expected[i - 1, prompt[i]]) for i in range(2, len(prompt))]
    assert score.logprobs == pytest.approx(wanted, abs=1e-5)  # float32 logits


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_a_prompt_of_one_token_has_one_entry_that_follows_nothing(model: LanguageModel, tokenizer: Tokenizer, max_tokens: int) -> None:
    async def use(engine: Engine) -> list[Event]:
        return [event async for event in engine.stream([65], greedy(max_tokens, prompt_logprobs=1))]

    events, _ = with_engine(model, tokenizer, ROOMY, use)
    assert events[-1].prompt_logprobs == (None,)


def test_logprobs_accompany_each_token_of_the_answer(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> list[Reply]:
        asked = (greedy(6, logprobs=3), greedy(6, logprobs=1), greedy(6))
        return list(await asyncio.gather(*(engine.generate("abc", params) for params in asked)))

    (reply, fewer, plain), _ = with_engine(model, tokenizer, ROOMY, use)
    assert [len(entry.top) for entry in fewer.logprobs] == [1] * 6
    assert plain.logprobs == ()
    assert tuple(entry.token_id for entry in reply.logprobs) == reply.token_ids
    token_ids = tokenizer.encode("abc")
    for entry in reply.logprobs:
        expected = plain_logits(model, token_ids)[-1].double().log_softmax(-1)
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-5)
        assert [top.logprob for top in entry.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-5)
        token_ids.append(entry.token_id)


def test_the_stream_is_deltas_then_one_finish_and_says_what_was_generated(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> list[Event]:
        return [event async for event in engine.stream("hello", greedy(20))]

    events, _ = with_engine(model, tokenizer, ROOMY, use)
    assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]
    token_ids = [token_id for event in events[:-1] for token_id in event.token_ids]
    assert token_ids == plain_greedy(model, tokenizer.encode("hello"), 20)
    assert "".join(event.text for event in events[:-1]) == tokenizer.decode(token_ids)
    timings = events[-1].timings
    assert timings.queue_s >= 0
    assert timings.prefill_s > 0
    assert timings.decode_s > 0


def test_what_is_delivered_during_the_next_step_arrives_whole_and_in_order(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "is_asynchronous", property(lambda runner: True))  # as on a GPU

    async def use(engine: Engine) -> list[list[Event]]:
        async def listen(prompt: str, num_tokens: int) -> list[Event]:
            return [event async for event in engine.stream(prompt, greedy(num_tokens))]

        async def leave(prompt: str) -> None:
            events = engine.stream(prompt, greedy(200))
            await anext(events)
            await events.aclose()

        *heard, _ = await asyncio.gather(*(listen(prompt, 3 + i) for i, prompt in enumerate(PROMPTS[:6])), leave(PROMPTS[6]))
        return [*heard, await listen(PROMPTS[0], 1)]  # alone: no next step follows

    heard, _ = with_engine(model, tokenizer, ROOMY, use)
    for i, events in enumerate(heard):
        prompt, num_tokens = (PROMPTS[i], 3 + i) if i < 6 else (PROMPTS[0], 1)
        assert isinstance(events[-1], Finished)
        token_ids = [token_id for event in events[:-1] for token_id in event.token_ids]
        assert token_ids == plain_greedy(model, tokenizer.encode(prompt), num_tokens)


def test_who_waits_for_a_whole_answer_is_woken_once_and_loses_nothing_of_what_an_abort_leaves(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over: list[int] = []  # events, by waking
    hand_over = step_loop._hand_over

    def counted(deliveries: list[tuple[Stream, Sequence[Any]]]) -> None:
        handed_over.append(sum(len(events) for _, events in deliveries))
        hand_over(deliveries)

    is_there, goes_on = threading.Event(), threading.Event()
    run, steps = Runner.run, itertools.count(1)

    def stopped_at_step_60(runner: Runner, *arguments: Any) -> StepResult:
        if next(steps) == 60:
            is_there.set()
            goes_on.wait(10)
        return run(runner, *arguments)

    monkeypatch.setattr(Runner, "run", stopped_at_step_60)
    monkeypatch.setattr(step_loop, "_hand_over", counted)

    async def use(engine: Engine) -> tuple[Reply, list[int], list[Event], list[int], Reply]:
        whole = await engine.generate("a", greedy(20))
        of_whole = handed_over.copy()
        handed_over.clear()
        events = [event async for event in engine.stream("a", greedy(20))]
        of_stream = handed_over.copy()
        begun = asyncio.create_task(engine.generate("a", greedy(250), request_id="long"))
        await asyncio.to_thread(is_there.wait, 10)
        engine.abort("long")
        goes_on.set()
        return whole, of_whole, events, of_stream, await begun

    (whole, of_whole, events, of_stream, aborted), _ = with_engine(model, tokenizer, ROOMY, use)
    assert of_whole == [21]
    assert of_stream == [1] * 19 + [2]
    assert whole.token_ids == tuple(token_id for event in events if isinstance(event, Delta) for token_id in event.token_ids)
    assert aborted.finish_reason == "abort"
    assert len(aborted.token_ids) == aborted.usage.completion_tokens == 20  # steps 41 to 60
    assert aborted.token_ids == whole.token_ids


def test_the_end_of_sequence_ends_and_is_counted_but_not_shown(model: LanguageModel, tokenizer: Tokenizer) -> None:
    answer = plain_greedy(model, tokenizer.encode("hello"), 12)
    stop_id = next(token_id for token_id in answer[3:] if token_id not in answer[:3])
    length = answer.index(stop_id) + 1
    params = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=(stop_id,))
    [reply], _ = with_engine(model, tokenizer, ROOMY, together(["hello"], params))
    assert list(reply.token_ids) == answer[:length]
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens == length
    assert reply.text == tokenizer.decode(answer[: length - 1])


@pytest.mark.parametrize("extra", [0, 5])
def test_a_stop_string_across_token_borders_ends_the_answer_even_on_its_last_token(
    model: LanguageModel, tokenizer: Tokenizer, extra: int
) -> None:
    prompt = tokenizer.encode("hello")
    answer = plain_greedy(model, prompt, 40)
    start = next(i for i in range(2, 37) if all(32 < token_id < 127 for token_id in answer[i : i + 3]))
    stop = bytes(answer[start : start + 3]).decode("ascii")
    start = bytes(min(token_id, 255) for token_id in answer).index(stop.encode())
    params = greedy(start + 3 + extra, stop=(stop,))
    [reply], _ = with_engine(model, tokenizer, ROOMY, together([prompt], params))
    assert reply.finish_reason == "stop"
    assert reply.text == tokenizer.decode(answer[:start])
    assert list(reply.token_ids) == answer[: start + 3]
    assert reply.usage.completion_tokens == start + 3


def test_many_streams_over_few_places_all_end(model: LanguageModel, tokenizer: Tokenizer) -> None:
    config = EngineConfig(kv_tokens=512, max_num_requests=8, max_batch_tokens=64)
    prompts = [f"request number {number}" for number in range(120)]
    replies, stats = with_engine(model, tokenizer, config, together(prompts, greedy(5)))
    assert [reply.usage.completion_tokens for reply in replies] == [5] * 120
    assert (stats.finished, stats.failed, stats.completion_tokens) == (120, 0, 600)


# --- refusals: before any work


def test_a_text_that_no_tokens_could_shorten_enough_is_refused_before_it_is_tokenised(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: Engine) -> None:
        longest = 256 * 4  # characters: one token a byte, and four characters that normalisation may make one
        engine.check_length(longest)
        with monkeypatch.context() as patch:
            patch.delattr(type(tokenizer), "encode")  # so that tokenising would fail otherwise
            with pytest.raises(ContextLengthError, match=r"1028 characters, more than 257 tokens; at most 256 fit"):
                engine.stream("x" * (longest + 4), greedy(1))

    with_engine(model, tokenizer, ROOMY, use)


def test_too_long_is_refused_at_the_call_with_the_numbers(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        assert engine.max_context == 256
        with pytest.raises(ContextLengthError, match=r"prompt has 250 tokens .* may take 7, 257 together; the model's context holds 256"):
            engine.stream([5] * 250, greedy(7))
        with pytest.raises(ContextLengthError, match="256 tokens and the answer may take 1"):
            await engine.generate([5] * 256, SamplingParams())
        assert (await engine.generate([5] * 250, SamplingParams(ignore_eos=True))).usage.completion_tokens == 6

    _, stats = with_engine(model, tokenizer, ROOMY, use)
    assert stats.finished == 1


def test_the_pool_can_be_the_limit(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(ContextLengthError, match=r"KV pool \(4 blocks of 16\) holds 64"):
            await engine.generate([5] * 60, greedy(5))
        assert (await engine.generate([5] * 60, greedy(4))).usage.completion_tokens == 4

    with_engine(model, tokenizer, EngineConfig(kv_tokens=64), use)


@pytest.mark.parametrize(
    ("prompt", "params", "message", "field"),
    [
        ([], {}, "no tokens", "prompt"),
        ([1, 259], {}, r"token id 259; .* 0 to 258", "prompt"),
        ([1, 2.0], {}, "holds what is no token id: 'float'", "prompt"),
        ("ab\ud800", {}, "character 2 of the prompt is half of a surrogate pair", "prompt"),
        ([1], {"logit_bias": {-1: 2.0}}, "token id -1", "logit_bias"),
        ([1], {"stop_token_ids": (1000,)}, "token id 1000", "stop_token_ids"),
        ([1], {"stop_token_ids": tuple(range(259)), "min_tokens": 1}, "every token ends the text", "min_tokens"),
    ],
)
def test_a_bad_request_names_its_field(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str | list[int], params: dict[str, Any], message: str, field: str
) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(RequestError, match=message) as refused:
            engine.stream(prompt, SamplingParams(**params))
        assert refused.value.param == field
        for who in ({"priority": "high"}, {"priority": None}, {"tenant": ["a"]}):
            with pytest.raises(RequestError) as refused:
                engine.stream([1], SamplingParams(), **who)  # type: ignore[arg-type]
            assert refused.value.param in who
        with pytest.raises(RequestError, match="at least one token") as refused:
            await engine.score([1], [])
        assert refused.value.param == "continuation_ids"

    with_engine(model, tokenizer, ROOMY, use)


def test_a_request_that_the_queue_cannot_order_fails_alone_and_the_engine_goes_on(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> Reply:
        with pytest.raises(EngineError, match="could not be queued: OverflowError"):
            await asyncio.wait_for(engine.generate("Hi", greedy(2), priority=10**400, timeout_s=0.01), timeout=10.0)
        await asyncio.sleep(0.02)  # beyond its deadline
        assert engine.is_alive
        return await engine.generate("Hi", greedy(2))

    reply, stats = with_engine(model, tokenizer, ROOMY, use)
    assert reply.usage.completion_tokens == 2
    assert (stats.finished, stats.failed) == (2, 1)


def test_a_full_queue_is_overload_for_the_newcomer_only(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> list[Reply | BaseException]:
        return await asyncio.gather(*(engine.generate(prompt, greedy(30)) for prompt in PROMPTS), return_exceptions=True)

    outcomes, stats = with_engine(model, tokenizer, EngineConfig(kv_tokens=2048, max_num_requests=1, max_num_waiting=3), use)
    refused = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
    answered = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    assert len(refused) >= 10
    assert len(refused) + len(answered) == 16
    assert all(reply.usage.completion_tokens == 30 for reply in answered)
    assert stats.waiting == 0


# --- ends: abort, close, failure


def test_aborts_at_random_moments_free_everything_and_change_no_other_answer(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]]
) -> None:
    chance = random.Random(7)

    async def leave_early(engine: Engine, prompt: str) -> str:
        num_wanted = chance.randrange(0, 12)
        events = engine.stream(prompt, greedy(60))
        async for event in events:
            if num_wanted == 0:
                break
            num_wanted -= len(event.token_ids) if isinstance(event, Delta) else 0
        await events.aclose()
        return "left"

    async def be_cancelled(engine: Engine, prompt: str) -> str:
        task = asyncio.create_task(engine.generate(prompt, greedy(60)))
        await asyncio.sleep(chance.random() * 0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "cancelled"

    async def be_aborted(engine: Engine, prompt: str, name: str) -> str:
        task = asyncio.create_task(engine.generate(prompt, greedy(60), request_id=name))
        await asyncio.sleep(chance.random() * 0.05)
        try:
            engine.abort(name)
        except NotFoundError:
            assert task.done()
            return "too late"
        reply = await task
        assert reply.finish_reason in ("abort", "length")
        assert list(reply.token_ids) == plain_greedy(model, tokenizer.encode(prompt), len(reply.token_ids))
        return reply.finish_reason

    async def use(engine: Engine) -> tuple[list[Reply], list[str]]:
        jobs = []
        for number, prompt in enumerate(PROMPTS):
            jobs += [leave_early(engine, prompt), be_cancelled(engine, prompt), be_aborted(engine, prompt, f"named-{number}")]
        chance.shuffle(jobs)
        outcomes = asyncio.gather(*jobs)
        return await together(PROMPTS, greedy(24))(engine), await outcomes

    (replies, outcomes), stats = with_engine(model, tokenizer, TIGHT_AND_CHUNKED, use)
    assert [list(reply.token_ids) for reply in replies] == [greedy_answers[prompt] for prompt in PROMPTS]
    assert "abort" in outcomes, "some aborts must come in time"
    assert stats.preemptions > 0


@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_a_reader_who_leaves_ends_the_work_at_the_next_step(model: LanguageModel, tokenizer: Tokenizer, way: str) -> None:
    async def use(engine: Engine) -> None:
        if way == "closed":
            events = engine.stream("a", greedy(250))
            await anext(events)
            await events.aclose()
            return
        task = asyncio.create_task(engine.generate("a", greedy(250)))
        while engine.stats().steps < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    _, stats = with_engine(model, tokenizer, ROOMY, use)
    assert stats.finished == 1
    assert stats.completion_tokens < 200, "it ran on without a reader"


def test_an_unknown_request_cannot_be_aborted_and_an_open_id_not_taken(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(NotFoundError, match="'nobody'"):
            engine.abort("nobody")
        first = engine.stream("a", greedy(50), request_id="mine")
        await anext(first)
        with pytest.raises(RequestError, match="'mine' is open already"):
            await engine.generate("b", greedy(1), request_id="mine")
        await first.aclose()
        for _ in range(3):  # an id is free as soon as its answer is there
            await engine.generate("b", greedy(1), request_id="mine")

    with_engine(model, tokenizer, ROOMY, use)


def test_an_abort_by_another_thread_cannot_overtake_the_request(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: Engine) -> Reply:
        add = engine._loop.add
        other = threading.Thread(target=engine.abort, args=("mine",))

        def add_while_another_aborts(stream: Stream) -> bool:
            other.start()
            other.join(timeout=0.1)
            return add(stream)

        monkeypatch.setattr(engine._loop, "add", add_while_another_aborts)
        return await engine.generate("a", greedy(200), request_id="mine")

    reply, _ = with_engine(model, tokenizer, ROOMY, use)
    assert reply.finish_reason == "abort"


class Failing:
    """A model that fails when a token 77 is in the step."""

    def __init__(self, inner: LanguageModel) -> None:
        self.inner, self.config, self.dtype, self.device = inner, inner.config, inner.dtype, inner.device

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        if bool((token_ids == 77).any()):
            raise ValueError("the kernel met a 77")
        return self.inner.hidden(token_ids, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.inner.logits(hidden)


@dataclass
class Overflowing:
    """A model that gives no numbers for a token 77: in its keys and values and what follows, or in its logits alone."""

    inner: LanguageModel
    where: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        is_bad = token_ids == 77

        def damage(layer: int, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            return attend(layer, query, key.masked_fill(is_bad[:, None, None], math.nan), value, **options)

        hidden = self.inner.hidden(token_ids, positions, damage if self.where == "hidden" else attend)
        self.bad_rows = hidden[is_bad]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.inner.logits(hidden)
        is_bad = (hidden[:, None] == self.bad_rows[None]).all(-1).any(-1)
        return logits.masked_fill(is_bad[:, None], math.inf)


@pytest.mark.parametrize("config", [ROOMY, CHUNKED, TIGHT], ids=["roomy", "chunked", "tight"])
def test_a_request_that_makes_the_step_raise_fails_alone(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]], config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(engine: Engine) -> list[Any]:
        culprits = [engine.generate([1, 77, number], greedy(4)) for number in (3, 4)]
        return await asyncio.gather(*culprits, *(engine.generate(prompt, greedy(24)) for prompt in PROMPTS), return_exceptions=True)

    with caplog.at_level(logging.CRITICAL):
        outcomes, stats = with_engine(Failing(model), tokenizer, config, use)
    for outcome in outcomes[:2]:
        assert isinstance(outcome, EngineError)
        assert "this request could not be computed: ValueError: the kernel met a 77" in str(outcome)
    assert [list(reply.token_ids) for reply in outcomes[2:]] == [greedy_answers[prompt] for prompt in PROMPTS]
    assert stats.failed == 2


@pytest.mark.parametrize("where", ["hidden", "logits"])
def test_a_request_whose_numbers_are_not_finite_fails_alone_and_leaves_nothing_behind(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(engine: Engine) -> None:
        for _ in range(3):  # the blocks of the failed one are used again by the next
            failed, *replies = await asyncio.gather(
                engine.generate([1, 77, 3, 77], greedy(4)),
                *(engine.generate(prompt, greedy(24)) for prompt in PROMPTS),
                return_exceptions=True,
            )
            assert isinstance(failed, EngineError)
            assert "is not a finite number" in str(failed)
            for prompt, reply in zip(PROMPTS, replies, strict=True):
                assert isinstance(reply, Reply), reply
                assert list(reply.token_ids) == greedy_answers[prompt]

    with caplog.at_level(logging.CRITICAL):
        with_engine(Overflowing(model, where), tokenizer, EngineConfig(kv_tokens=1024, block_size=8), use)


def test_a_failed_step_spares_the_queue(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    async def use(engine: Engine) -> None:
        doomed, *waiting = await asyncio.gather(
            engine.generate([1, 77, 3], greedy(4)), *(engine.generate(prompt, greedy(24)) for prompt in PROMPTS[:3]), return_exceptions=True
        )
        assert isinstance(doomed, EngineError)
        assert [list(reply.token_ids) for reply in waiting] == [greedy_answers[prompt] for prompt in PROMPTS[:3]]

    with caplog.at_level(logging.CRITICAL):
        with_engine(Failing(model), tokenizer, EngineConfig(kv_tokens=2048, max_num_requests=1), use)


def test_a_failure_before_anyone_runs_ends_the_queue_instead_of_repeating_forever(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(engine: Engine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(engine._loop.policy, "plan", lambda now: 1 // 0)
            with pytest.raises(EngineError, match="ZeroDivisionError"):
                await asyncio.wait_for(engine.generate("a", greedy(1)), timeout=10)
        assert (await engine.generate("a", greedy(1))).usage.completion_tokens == 1

    with caplog.at_level(logging.CRITICAL):
        with_engine(model, tokenizer, ROOMY, use)


class Unspeakable:
    """A tokenizer that cannot name one token."""

    def __init__(self, inner: Tokenizer, token_id: int) -> None:
        self._inner, self._token_id = inner, token_id

    def token_text(self, token_id: int) -> str:
        if token_id == self._token_id:
            raise ValueError("unspeakable")
        return self._inner.token_text(token_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_failure_in_one_output_ends_that_request_alone(
    model: LanguageModel, tokenizer: Tokenizer, greedy_answers: dict[str, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    prompt = PROMPTS[0]
    broken = Unspeakable(tokenizer, greedy_answers[prompt][3])

    async def use(engine: Engine) -> list[Any]:
        return await asyncio.gather(
            engine.generate(prompt, greedy(24, logprobs=0)),
            *(engine.generate(other, greedy(24)) for other in PROMPTS),
            return_exceptions=True,
        )

    with caplog.at_level(logging.CRITICAL):
        (failed, *others), stats = with_engine(model, broken, ROOMY, use)  # type: ignore[arg-type]
    assert isinstance(failed, EngineError)
    assert "unspeakable" in str(failed)
    assert [list(reply.token_ids) for reply in others] == [greedy_answers[other] for other in PROMPTS]
    assert stats.failed == 1


def test_closing_ends_every_open_stream_with_an_error_and_refuses_new_ones(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def main() -> None:
        engine = Engine(model, tokenizer, EngineConfig(kv_tokens=2048, max_num_requests=2), name="test")
        tasks = [asyncio.create_task(engine.generate(prompt, greedy(150))) for prompt in PROMPTS]
        while engine.stats().steps < 3:
            await asyncio.sleep(0.001)
        await engine.aclose()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=5)
        assert all(isinstance(outcome, EngineError) and "was closed" in str(outcome) for outcome in outcomes)
        with pytest.raises(EngineError, match="is closed; open another"):
            await engine.generate("late", greedy(1))
        await engine.aclose()

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a task cannot end in peace without its loop
@pytest.mark.parametrize("way", ["stream", "generate"])
def test_a_reader_whose_event_loop_is_gone_does_not_hold_blocks(model: LanguageModel, tokenizer: Tokenizer, way: str) -> None:
    engine = Engine(model, tokenizer, ROOMY, name="test")

    async def begin() -> None:
        if way == "stream":
            events = engine.stream("abandoned", greedy(200))
            await anext(events)
            kept.append(events)
        else:
            kept.append(asyncio.create_task(engine.generate("abandoned", greedy(200))))
            while engine.stats().steps < 3:
                await asyncio.sleep(0.001)

    kept: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()

    async def finish() -> None:
        reply = await engine.generate("next", greedy(3))
        assert reply.usage.completion_tokens == 3
        stats = await until_idle(engine)
        assert stats.free_blocks + stats.cached_blocks == stats.total_blocks
        assert stats.completion_tokens < 200, "it ran on without a reader"
        await engine.aclose()

    asyncio.run(finish())
    kept.clear()
    gc.collect()  # here, and not in another test


def test_an_idle_engine_reclaims_and_reports_lost_blocks(
    model: LanguageModel, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Engine(model, tokenizer, ROOMY, name="test") as engine:
            engine._loop.policy.blocks.allocate(40)  # the planted defect: 3 blocks that nobody will release
            await engine.generate("a", greedy(2))
            while engine.stats().leaked_blocks == 0:
                await asyncio.sleep(0.005)
            stats = engine.stats()
            assert (stats.leaked_blocks, stats.free_blocks) == (3, stats.total_blocks)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "3 blocks had no owner" in caplog.text


def test_an_engine_opens_from_the_address_of_a_checkpoint(model: LanguageModel, tmp_path: Path) -> None:
    from tripod.models.save import save_checkpoint

    save_checkpoint(model, tmp_path)
    write_byte_tokenizer(tmp_path)
    engine = Engine.load(str(tmp_path), config=EngineConfig(kv_tokens=512))
    assert engine.name == str(tmp_path)

    async def main() -> Reply:
        async with engine:
            return await engine.generate("hello", greedy(12))

    assert list(asyncio.run(main()).token_ids) == plain_greedy(model, engine.tokenizer.encode("hello"), 12)


def test_bfloat16_runs_with_a_pool_of_its_type(tokenizer: Tokenizer) -> None:
    model = make_model().to(torch.bfloat16)  # type: ignore[attr-defined]
    replies, stats = with_engine(model, tokenizer, TIGHT, together(PROMPTS[:4], greedy(8)))
    assert all(reply.usage.completion_tokens == 8 for reply in replies)
    assert stats.kv_bytes == 288 * 3 * 2 * 2 * 8 * 2


# --- what the engine remembers of its steps


def test_steps_are_recorded_and_add_up_to_the_tokens_that_were_computed(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> tuple[list[Finished], tuple[StepRecord, ...]]:
        async def finished(prompt: str) -> Finished:
            *_, last = [event async for event in engine.stream(prompt, greedy(9))]
            assert isinstance(last, Finished)
            return last

        ends = list(await asyncio.gather(*(finished(prompt) for prompt in PROMPTS)))
        while engine.recent_steps()[-1].id < max(end.step_ids[-1] for end in ends):  # written after the step's events are delivered
            await asyncio.sleep(0.001)
        return ends, engine.recent_steps()

    (ends, steps), stats = with_engine(model, tokenizer, CHUNKED, use)
    assert [step.id for step in steps] == list(range(stats.steps))
    assert sum(step.num_prefill_tokens for step in steps) == sum(len(prompt.encode()) for prompt in PROMPTS)
    assert sum(step.num_decode_tokens for step in steps) == len(PROMPTS) * 8  # the last token is never computed
    for step_id in range(stats.steps):
        assert sum(step_id in end.step_ids for end in ends) == steps[step_id].num_requests
    for earlier, later in itertools.pairwise(steps):
        assert earlier.started_s + earlier.total_s <= later.started_s + 1e-4, "phases overlap"
        assert min(earlier.plan_s, earlier.prepare_s, earlier.model_s, earlier.sample_s, earlier.deliver_s) >= 0.0


def test_an_engine_that_hangs_says_for_how_long(model: LanguageModel, tokenizer: Tokenizer) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Hanging:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
            entered.set()
            go_on.wait(timeout=10)
            return model.hidden(token_ids, positions, attend)

    async def use(engine: Engine) -> None:
        await asyncio.sleep(0.1)
        assert engine.stalled_s() == 0.0, "an idle engine is not stalled"
        asked = asyncio.create_task(engine.generate("a", greedy(2)))
        await asyncio.to_thread(entered.wait, 10)
        assert engine.stalled_s() < 0.1, "the idle time before does not count"
        await asyncio.sleep(0.15)
        assert engine.stalled_s() >= 0.15
        go_on.set()
        await asked
        await until_idle(engine)
        await asyncio.sleep(0.05)
        assert engine.stalled_s() == 0.0

    with_engine(Hanging(), tokenizer, ROOMY, use)  # type: ignore[arg-type]
