"""What every ChatModel must do. Subclass it as `class TestMine(ChatModelContract)` and say how to open one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeVar

from tripod.messages import assistant, system, user
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Finished, fold

T = TypeVar("T")

_QUESTION = Prompt.of("Count to five.")
_WHOLE = SamplingParams(temperature=0.0, max_tokens=24)
_PATIENCE_S = 10.0


class ChatModelContract:
    """Tests without a framework: methods that assert. The model must give equal answers to equal greedy requests."""

    def open_model(self) -> AbstractAsyncContextManager[ChatModel]:
        """A fresh model, able to answer at least four times, with at least three tokens each."""
        raise NotImplementedError

    def num_running(self, model: ChatModel) -> int:
        """Requests that are being worked on now, wherever that happens."""
        raise NotImplementedError

    def test_a_stream_ends_with_finished_exactly_once(self) -> None:
        events = self._run(_collect)
        assert [isinstance(event, Finished) for event in events].count(True) == 1
        assert isinstance(events[-1], Finished)

    def test_a_stream_comes_in_pieces(self) -> None:
        events = self._run(_collect)
        assert sum(isinstance(event, Delta) and bool(event.text) for event in events) > 1

    def test_a_stream_adds_up_to_the_whole_answer(self) -> None:
        async def both(model: ChatModel) -> None:
            whole = await model.complete(_QUESTION, _WHOLE)
            added = await fold(model.stream(_QUESTION, _WHOLE))
            assert added.text == whole.text
            assert added.finish_reason == whole.finish_reason
            assert added.model == whole.model

        self._run(both)

    def test_usage_is_counted_both_ways(self) -> None:
        async def both(model: ChatModel) -> None:
            whole = await model.complete(_QUESTION, _WHOLE)
            added = await fold(model.stream(_QUESTION, _WHOLE))
            for usage in (whole.usage, added.usage):
                assert usage.prompt_tokens > 0
                assert usage.completion_tokens > 0
            assert added.usage.total_tokens == whole.usage.total_tokens

        self._run(both)

    def test_an_answer_is_no_longer_than_asked_for(self) -> None:
        async def short(model: ChatModel) -> None:
            reply = await model.complete(_QUESTION, SamplingParams(temperature=0.0, max_tokens=2))
            assert reply.usage.completion_tokens == 2
            assert reply.finish_reason == "length"

        self._run(short)

    def test_a_stop_string_ends_the_text_before_it(self) -> None:
        async def stopped(model: ChatModel) -> None:
            text = (await model.complete(_QUESTION, _WHOLE)).text
            middle = len(text) // 2
            stop = text[middle : middle + 2]
            sampling = SamplingParams(temperature=0.0, max_tokens=24, stop=(stop,))
            reply = await model.complete(_QUESTION, sampling)
            assert reply.text == text[: text.index(stop)]
            assert reply.finish_reason == "stop"
            assert (await fold(model.stream(_QUESTION, sampling))).text == reply.text

        self._run(stopped)

    def test_a_conversation_with_all_roles_is_answered(self) -> None:
        async def converse(model: ChatModel) -> None:
            prompt = Prompt.of([system("Be brief."), user("One?"), assistant("Two."), user("Three?")])
            assert (await model.complete(prompt, _WHOLE)).message.role == "assistant"

        self._run(converse)

    def test_an_empty_question_is_answered(self) -> None:
        async def empty(model: ChatModel) -> None:
            assert (await model.complete(Prompt.of(""), _WHOLE)).message.role == "assistant"

        self._run(empty)

    def test_closing_a_stream_early_stops_the_work(self) -> None:
        async def leave(model: ChatModel) -> None:
            async with _closing(model) as events:
                async for _ in events:
                    break
            await _until(lambda: self.num_running(model) == 0)
            assert (await model.complete(_QUESTION, _WHOLE)).text  # and the model still answers

        self._run(leave)

    def test_cancelling_a_reader_stops_the_work(self) -> None:
        async def cancel(model: ChatModel) -> None:
            begun = asyncio.Event()

            async def read() -> None:
                async with _closing(model) as events:
                    async for _ in events:
                        begun.set()
                        await asyncio.sleep(3600)

            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await _until(lambda: self.num_running(model) == 0)
            assert (await model.complete(_QUESTION, _WHOLE)).text

        self._run(cancel)

    def _run(self, check: Callable[[ChatModel], Awaitable[T]]) -> T:
        async def opened() -> T:
            async with self.open_model() as model:
                return await check(model)

        return asyncio.run(opened())


async def _collect(model: ChatModel) -> list[Event]:
    return [event async for event in model.stream(_QUESTION, _WHOLE)]


def _closing(model: ChatModel) -> AbstractAsyncContextManager[AsyncGenerator[Event, None]]:
    events = model.stream(_QUESTION, SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))
    assert isinstance(events, AsyncGenerator), "a stream can be closed: write it as an async generator"
    return aclosing(events)


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.01)
