"""The scripted model: it keeps the contract, and it keeps to its script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tripod.chat.scripted import ScriptedModel
from tripod.errors import ConfigError, OverloadedError
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.testing.chat_model import ChatModelContract
from tripod.trace import Delta


class TestScriptedModel(ChatModelContract):
    @asynccontextmanager
    async def open_model(self) -> AsyncIterator[ChatModel]:
        yield ScriptedModel(["one two three four five"] * 4)

    def num_running(self, model: ChatModel) -> int:
        assert isinstance(model, ScriptedModel)
        return model.num_running


def test_replies_come_in_order_and_prompts_are_kept() -> None:
    async def ask() -> None:
        model = ScriptedModel(["first", "second"])
        assert (await model.complete(Prompt.of("a"), SamplingParams())).text == "first"
        assert (await model.complete(Prompt.of("b"), SamplingParams())).text == "second"
        assert [prompt.messages[0].text for prompt in model.prompts] == ["a", "b"]
        with pytest.raises(ConfigError, match="the script has 2 replies"):
            await model.complete(Prompt.of("c"), SamplingParams())

    asyncio.run(ask())


def test_an_exception_in_the_script_is_raised_in_its_turn() -> None:
    async def ask() -> None:
        model = ScriptedModel([OverloadedError("full"), "then"])
        with pytest.raises(OverloadedError):
            await model.complete(Prompt.of("a"), SamplingParams())
        assert (await model.complete(Prompt.of("a"), SamplingParams())).text == "then"

    asyncio.run(ask())


@pytest.mark.parametrize("reply", ["", " ", "one", " lead  and\ttrail \n", "a\n\nb"])
def test_the_pieces_add_up_to_the_reply_with_all_its_white_space(reply: str) -> None:
    async def pieces() -> list[str]:
        events = ScriptedModel([reply]).stream(Prompt.of("x"), SamplingParams())
        return [event.text async for event in events if isinstance(event, Delta)]

    assert "".join(asyncio.run(pieces())) == reply
