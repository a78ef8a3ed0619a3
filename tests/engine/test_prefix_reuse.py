"""What a user of the engine sees of the prefix cache, of priorities and of deadlines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.engine.conftest import plain_greedy
from tests.engine.test_engine import greedy, until_idle, with_engine
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import DeadlineError, RequestError
from tripod.models.language_model import LanguageModel
from tripod.text.tokenizer import Tokenizer
from tripod.trace import Event, Finished

ROOMY = EngineConfig(kv_tokens=8192)
SYSTEM = "you are a careful reader of long documents, and you answer in one word. "  # 72 tokens: four full blocks


async def finished(engine: Engine, prompt: str, max_tokens: int = 8, **more: Any) -> tuple[list[int], Finished]:
    events: list[Event] = [event async for event in engine.stream(prompt, greedy(max_tokens), **more)]
    last = events[-1]
    assert isinstance(last, Finished)
    return [token_id for event in events[:-1] for token_id in event.token_ids], last  # type: ignore[union-attr]


def test_a_cached_beginning_changes_no_token_and_is_told(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        for question, num_cached, why in (
            ("first?", 0, "nothing like the tokens from 0 on is in the cache"),
            ("second?", 64, "token 72 is 115; the closest cached sequence has 102 there"),
            ("second?", 64, None),
        ):
            token_ids, last = await finished(engine, SYSTEM + question)
            assert token_ids == plain_greedy(model, tokenizer.encode(SYSTEM + question), 8)
            assert (last.usage.cached_tokens, last.cache_miss) == (num_cached, why)

    _, stats = with_engine(model, tokenizer, ROOMY, use)
    assert stats.cached_blocks > 0


def test_a_cache_that_is_off_is_off(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        for _ in range(2):
            _, last = await finished(engine, SYSTEM)
            assert (last.usage.cached_tokens, last.cache_miss) == (0, None)

    _, stats = with_engine(model, tokenizer, EngineConfig(kv_tokens=8192, prefix_cache=False), use)
    assert stats.cached_blocks == 0


def test_many_answers_to_one_prompt_compute_it_once(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> int:
        outcomes = await asyncio.gather(*(finished(engine, SYSTEM, 6) for _ in range(8)))
        assert all(token_ids == plain_greedy(model, tokenizer.encode(SYSTEM), 6) for token_ids, _ in outcomes)
        return sum(step.num_prefill_tokens for step in engine.recent_steps())

    num_prefill, _ = with_engine(model, tokenizer, ROOMY, use)
    assert num_prefill == 72 + 7 * (72 - 64)


def test_a_passed_deadline_is_an_error_of_that_request_alone(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> None:
        late = asyncio.create_task(engine.generate("late", greedy(250), timeout_s=0.02))
        other = asyncio.create_task(engine.generate("other", greedy(30)))
        with pytest.raises(DeadlineError, match=r"the deadline of request request-\w+ passed when") as passed:
            await late
        assert passed.value.status == 504
        assert (await other).usage.completion_tokens == 30
        stats = await until_idle(engine)
        assert (stats.failed, stats.finished) == (1, 2)
        with pytest.raises(RequestError, match="timeout_s=0 leaves no time"):
            engine.stream("never", greedy(1), timeout_s=0)

    with_engine(model, tokenizer, ROOMY, use)


def test_a_lower_priority_number_is_answered_first(model: LanguageModel, tokenizer: Tokenizer) -> None:
    async def use(engine: Engine) -> list[str]:
        order: list[str] = []

        async def ask(name: str, priority: int) -> None:
            await engine.generate(name, greedy(6), priority=priority)
            order.append(name)

        first = asyncio.create_task(engine.generate("first", greedy(150)))
        while engine.stats().running == 0:
            await asyncio.sleep(0.001)
        await asyncio.gather(ask("batch", 5), ask("plain", 0), ask("urgent", -1), first)
        return order

    order, _ = with_engine(model, tokenizer, EngineConfig(kv_tokens=8192, max_num_requests=1), use)
    assert order == ["urgent", "plain", "batch"]
