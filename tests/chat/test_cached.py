"""A cache that is exact, and a recording that replays a run without its model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tripod.chat.cached import Cached
from tripod.chat.scripted import ScriptedModel
from tripod.errors import ConfigError
from tripod.messages import File, Message, Reply, TokenLogprob, ToolCall, ToolSpec, Usage, user
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import Grammar, SamplingParams
from tripod.testing.chat_model import ChatModelContract
from tripod.trace import fold, folded, unfolded

PLAIN = SamplingParams(temperature=0.0)
QUESTION = Prompt.of("Why?")
TOOL = ToolSpec("add", "Adds.", {"type": "object"})


class TestCached(ChatModelContract):
    @asynccontextmanager
    async def open_model(self) -> AsyncIterator[ChatModel]:
        self.script = ScriptedModel(["one two three four five"] * 4)
        yield Cached(self.script, "script")

    def num_running(self, model: ChatModel) -> int:
        return self.script.num_running


async def completed(model: ChatModel, prompt: Prompt = QUESTION, sampling: SamplingParams = PLAIN) -> Reply:
    return await model.complete(prompt, sampling)


async def streamed(model: ChatModel, prompt: Prompt = QUESTION, sampling: SamplingParams = PLAIN) -> Reply:
    return await fold(model.stream(prompt, sampling))


def test_the_same_request_is_answered_once_whole_or_streamed() -> None:
    async def ask() -> list[Reply]:
        model = Cached(ScriptedModel(["only once"]), "script")
        return [await streamed(model), await completed(model), await streamed(model)]

    first, *others = asyncio.run(ask())
    assert first.mode == ""
    assert others == [replace(first, mode="cached")] * 2


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        (Prompt.of("Why? "), PLAIN),
        (Prompt.of([Message("system", "Why?")]), PLAIN),
        (Prompt.of([user("Why?", File(media_type="image/png", data=b"a"))]), PLAIN),
        (Prompt.of([user("Why?", File(media_type="image/png", data=b"b"))]), PLAIN),
        (Prompt.of("Why?", tools=(TOOL,)), PLAIN),
        (Prompt.of("Why?", tools=(replace(TOOL, description="Adds!"),)), PLAIN),
        (Prompt.of("Why?", tools=(TOOL,), tool_choice="required"), PLAIN),
        (QUESTION, SamplingParams(temperature=1e-9)),
        (QUESTION, SamplingParams(temperature=0.0, seed=1)),
        (QUESTION, SamplingParams(temperature=0.0, stop=("x",))),
        (QUESTION, SamplingParams(temperature=0.0, logit_bias={7: 1.0})),
        (QUESTION, SamplingParams(temperature=0.0, grammar=Grammar.regex("a+"))),
    ],
)
def test_any_difference_in_the_request_is_another_request(prompt: Prompt, sampling: SamplingParams) -> None:
    async def ask() -> None:
        script = ScriptedModel(["a", "a"])
        model = Cached(script, "script")
        await completed(model)
        await completed(model, prompt, sampling)
        assert len(script.prompts) == 2

    asyncio.run(ask())


def test_a_recorded_run_is_replayed_from_its_file_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "recorded.jsonl"
    said = Message("assistant", "Größe", (ToolCall("1", "add", "{}"),), reasoning="hm")

    async def record() -> tuple[Reply, Reply]:
        model = Cached(ScriptedModel([said, "second"]), "script", path=path)
        return await streamed(model), await completed(model, Prompt.of("And then?"))

    async def replay() -> tuple[Reply, Reply]:
        model = Cached(None, "script", path=path)
        return await completed(model), await streamed(model, Prompt.of("And then?"))

    recorded, replayed = asyncio.run(record()), asyncio.run(replay())
    assert replayed == tuple(replace(reply, mode="cached") for reply in recorded)
    assert replayed[0].message == said


def test_a_reply_may_hold_what_ends_a_line(tmp_path: Path) -> None:
    said = "one\u2028line \x85 and \r\n\x0bmore"
    asyncio.run(completed(Cached(ScriptedModel([said]), "script", path=tmp_path / "c.jsonl")))
    assert asyncio.run(completed(Cached(None, "script", path=tmp_path / "c.jsonl"))).text == said


def test_what_is_not_recorded_is_refused_with_the_end_of_its_prompt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no reply of 'script' to this prompt is recorded in .*\[user\]\\nWhy\?"):
        asyncio.run(completed(Cached(None, "script", path=tmp_path / "none.jsonl")))


def test_answers_of_another_model_are_not_given(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    asyncio.run(completed(Cached(ScriptedModel(["mine"]), "a", path=path)))
    with pytest.raises(ConfigError, match="no reply of 'b'"):
        asyncio.run(completed(Cached(None, "b", path=path)))


def test_a_stream_that_was_left_early_is_not_kept() -> None:
    async def leave() -> str:
        model = Cached(ScriptedModel(["one two three", "whole"]), "script")
        async with aclosing(model.stream(QUESTION, PLAIN)) as events:
            async for _ in events:
                break
        return (await completed(model)).text

    assert asyncio.run(leave()) == "whole"


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(ConfigError, match=r"line 1 of .* is no recorded reply"):
        Cached(None, "script", path=tmp_path / "x.jsonl")


def test_a_reply_unfolds_into_events_that_fold_into_it() -> None:
    reply = Reply(
        message=Message("assistant", "ja", (ToolCall("1", "add", "{}"), ToolCall("2", "add", "")), reasoning="hm", signature="s"),
        finish_reason="length",
        usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
        model="m",
        mode="int8",
        token_ids=(4, 5),
        logprobs=(TokenLogprob(4, "j", b"j", -0.5), TokenLogprob(5, "a", b"a", -0.1)),
    )
    assert folded(unfolded(reply)) == reply
