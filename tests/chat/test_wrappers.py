"""Retrying, Fallback, Timeout: what they do when the model inside fails, before and after it has begun to speak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from tripod.chat.scripted import ScriptedModel
from tripod.chat.wrappers import Cascade, Fallback, RateLimited, Retrying, Timeout, is_confident
from tripod.errors import ConfigError, EngineError, ModelTimeoutError, OverloadedError, RequestError
from tripod.messages import Message, Reply, TokenLogprob, Usage
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.testing.chat_model import ChatModelContract
from tripod.trace import Delta, Event, fold

QUESTION = Prompt.of("q")
PARAMS = SamplingParams()

Way = Callable[[ChatModel], "asyncio.Future[Reply]"]


async def completed(model: ChatModel) -> Reply:
    return await model.complete(QUESTION, PARAMS)


async def streamed(model: ChatModel) -> Reply:
    return await fold(model.stream(QUESTION, PARAMS))


both_ways = pytest.mark.parametrize("way", [completed, streamed])


class BreaksOff:
    """Says one word and fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.num_asked = 0

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await fold(self.stream(prompt, sampling))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        self.num_asked += 1
        yield Delta(text="half")
        raise self.error


class Hangs:
    """Says one word and then nothing; it notes that it was cancelled."""

    was_cancelled = False

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await fold(self.stream(prompt, sampling))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        yield Delta(text="half")
        try:
            await asyncio.sleep(3600)
        finally:
            self.was_cancelled = True


class _WrappedContract(ChatModelContract):
    def num_running(self, model: ChatModel) -> int:
        return self.script.num_running

    def wrap(self, model: ChatModel) -> ChatModel:
        raise NotImplementedError

    @asynccontextmanager
    async def open_model(self) -> AsyncIterator[ChatModel]:
        self.script = ScriptedModel(["one two three four five"] * 4)
        yield self.wrap(self.script)


class TestRetrying(_WrappedContract):
    def wrap(self, model: ChatModel) -> ChatModel:
        return Retrying(model)


class TestFallback(_WrappedContract):
    def wrap(self, model: ChatModel) -> ChatModel:
        return Fallback((model,))


class TestTimeout(_WrappedContract):
    def wrap(self, model: ChatModel) -> ChatModel:
        return Timeout(model, seconds=60.0)


class TestRateLimited(_WrappedContract):
    def wrap(self, model: ChatModel) -> ChatModel:
        return RateLimited(model, requests=100)


class TestCascadeOfTheSmall(_WrappedContract):
    def wrap(self, model: ChatModel) -> ChatModel:
        return Cascade(ScriptedModel([""] * 4), model)  # of no tokens, because the usage is that of both


@both_ways
def test_retrying_waits_as_long_as_it_was_told(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("anyio.sleep", sleep)
    model = ScriptedModel([OverloadedError("full", retry_after_s=2.5), OverloadedError("full", retry_after_s=7.0), "at last"])
    assert asyncio.run(way(Retrying(model, attempts=3))).text == "at last"
    assert waited == [2.5, 7.0]


@both_ways
def test_retrying_gives_up_after_its_attempts(way: Way) -> None:
    model = ScriptedModel([OverloadedError("full", retry_after_s=0.0)] * 3)
    with pytest.raises(OverloadedError):
        asyncio.run(way(Retrying(model, attempts=2)))
    assert len(model.prompts) == 2


@both_ways
def test_retrying_lets_other_errors_rise_at_once(way: Way) -> None:
    model = ScriptedModel([EngineError("broken"), "never said"])
    with pytest.raises(EngineError):
        asyncio.run(way(Retrying(model)))
    assert len(model.prompts) == 1


def test_a_stream_that_has_begun_is_not_started_again() -> None:
    model = BreaksOff(OverloadedError("full", retry_after_s=0.0))
    with pytest.raises(OverloadedError):
        asyncio.run(streamed(Retrying(model)))
    assert model.num_asked == 1


@both_ways
@pytest.mark.parametrize("error", [EngineError("down"), OverloadedError("full"), ModelTimeoutError("slow")])
def test_fallback_asks_the_next_model(way: Way, error: Exception) -> None:
    assert asyncio.run(way(Fallback((ScriptedModel([error]), ScriptedModel(["second"]))))).text == "second"


@both_ways
@pytest.mark.parametrize("error", [RequestError("bad"), ConfigError("bad key")])
def test_fallback_does_not_repeat_a_bad_request_elsewhere(way: Way, error: Exception) -> None:
    second = ScriptedModel(["second"])
    with pytest.raises(type(error), match="bad"):
        asyncio.run(way(Fallback((ScriptedModel([error]), second))))
    assert second.prompts == []


@both_ways
def test_fallback_raises_the_last_error_when_all_fail(way: Way) -> None:
    with pytest.raises(EngineError, match="second"):
        asyncio.run(way(Fallback((ScriptedModel([EngineError("first")]), ScriptedModel([EngineError("second")])))))


def test_a_stream_that_has_begun_is_not_continued_by_another_model() -> None:
    second = ScriptedModel(["second"])
    with pytest.raises(EngineError, match="died"):
        asyncio.run(streamed(Fallback((BreaksOff(EngineError("died")), second))))
    assert second.prompts == []


@both_ways
def test_timeout_stops_a_model_that_hangs(way: Way) -> None:
    model = Hangs()
    with pytest.raises(ModelTimeoutError, match=r"within 0\.05 s"):
        asyncio.run(way(Timeout(model, seconds=0.05)))
    assert model.was_cancelled


class Drips:
    """Says a word every 20 ms, for a second."""

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        return await fold(self.stream(prompt, sampling))

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        for _ in range(50):
            await asyncio.sleep(0.02)
            yield Delta(text="drip")


@both_ways
def test_timeout_is_for_the_whole_answer_and_not_for_each_word(way: Way) -> None:
    with pytest.raises(ModelTimeoutError):
        asyncio.run(way(Timeout(Drips(), seconds=0.2)))


@pytest.mark.parametrize("wrap", [Retrying, lambda model: Fallback((model,)), lambda model: Timeout(model, seconds=60.0)])
def test_closing_a_wrapper_closes_the_stream_inside_at_once(wrap: Callable[[ChatModel], ChatModel]) -> None:
    async def leave() -> None:
        script = ScriptedModel(["one two three"])
        events = wrap(script).stream(QUESTION, PARAMS)
        assert isinstance(events, AsyncGenerator)
        await anext(events)
        assert script.num_running == 1
        await events.aclose()
        assert script.num_running == 0  # not some time later, when the garbage collector comes by

    asyncio.run(leave())


def test_the_time_that_a_reader_takes_does_not_count() -> None:
    async def read_slowly() -> str:
        text = ""
        async for event in Timeout(ScriptedModel(["one two three"]), seconds=0.1).stream(QUESTION, PARAMS):
            await asyncio.sleep(0.06)
            text += event.text if isinstance(event, Delta) else ""
        return text

    assert asyncio.run(read_slowly()) == "one two three"


def test_wrappers_that_cannot_work_are_refused_when_they_are_built() -> None:
    with pytest.raises(ConfigError, match="attempts=0"):
        Retrying(ScriptedModel([]), attempts=0)
    with pytest.raises(ConfigError, match="at least one"):
        Fallback(())
    with pytest.raises(ConfigError, match="seconds=0"):
        Timeout(ScriptedModel([]), seconds=0)


@both_ways
def test_a_rate_limit_spreads_requests_over_its_window(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: two at once, the third when the first is a minute old, at 60, the fourth as well, the fifth at 120."""
    clock = 0.0
    begun: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds
        begun[-1] = clock

    monkeypatch.setattr("anyio.current_time", lambda: clock)
    monkeypatch.setattr("anyio.sleep", sleep)

    async def ask() -> None:
        model = RateLimited(ScriptedModel(["ok"] * 6), requests=2, per_s=60.0)
        for _ in range(5):
            begun.append(clock)
            await way(model)

    asyncio.run(ask())
    assert begun == [0.0, 0.0, 60.0, 60.0, 120.0]
    with pytest.raises(ConfigError, match="lets nobody ask"):
        RateLimited(ScriptedModel([]), requests=0)


def test_who_gives_up_waiting_for_a_turn_takes_none() -> None:
    async def ask() -> float:
        model = RateLimited(ScriptedModel(["ok"] * 2), requests=1, per_s=0.1)
        await completed(model)
        start_s = time.monotonic()
        with anyio.move_on_after(0.02):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(completed, model)
        await completed(model)
        return time.monotonic() - start_s

    assert 0.08 < asyncio.run(ask()) < 0.5  # twenty turns would be two seconds


class Rated(ScriptedModel):
    """Says one word, with this log-probability where log-probabilities are asked for."""

    def __init__(self, text: str, logprob: float) -> None:
        super().__init__([text])
        self.logprob = logprob

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        async for event in super().stream(prompt, sampling):
            if isinstance(event, Delta) and sampling.logprobs is not None:
                event = Delta(text=event.text, logprobs=(TokenLogprob(0, event.text, b"", self.logprob),))
            yield event


@both_ways
def test_a_cascade_keeps_a_sure_small_answer_and_replaces_an_unsure_one_with_the_usage_of_both(way: Way) -> None:
    large = ScriptedModel(["large answer"])
    kept = asyncio.run(way(Cascade(Rated("small", -0.1), large)))
    assert (kept.text, kept.logprobs, large.prompts) == ("small", (), [])
    replaced = asyncio.run(way(Cascade(Rated("small", -0.5), large)))
    assert replaced.text == "large answer"
    assert replaced.usage == Usage(prompt_tokens=4, completion_tokens=3)  # "[user] q" twice; one word and two


def test_confidence_is_the_geometric_mean_of_the_probabilities() -> None:
    def reply(*logprobs: float) -> Reply:
        rated = tuple(TokenLogprob(0, "", b"", logprob) for logprob in logprobs)
        return Reply(message=Message("assistant", ""), finish_reason="stop", usage=Usage(), logprobs=rated)

    assert is_confident(reply(-0.2, -0.2))  # e^-0.2 = 0.819
    assert not is_confident(reply(-0.2, -0.3))  # e^-0.25 = 0.779
    assert not is_confident(reply())
