"""`Model(address)`: opens late, takes what people have at hand, and refuses options that do not apply."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serving.tiny import write_tiny
from tripod.chat.model import Model
from tripod.engine.engine import Engine
from tripod.errors import CheckpointError, ConfigError
from tripod.messages import user
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import fold

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_a_question_a_conversation_and_a_prompt_are_taken_alike(folder: Path) -> None:
    async def ask() -> set[str]:
        async with Model(str(folder)) as model:
            replies = [await model.complete(form, GREEDY) for form in ("Hi", [user("Hi")], Prompt.of("Hi"))]
            return {*(reply.text for reply in replies), (await fold(model.stream("Hi", GREEDY))).text}

    assert len(asyncio.run(ask())) == 1


def test_a_model_is_opened_by_its_first_use_and_only_once(folder: Path) -> None:
    async def ask() -> None:
        model = Model(str(folder / "nowhere"))  # nothing is looked at yet
        with pytest.raises(CheckpointError, match="nowhere"):
            await model.complete("Hi")
        async with Model(str(folder)) as model:
            await asyncio.gather(*(model.complete("Hi", GREEDY) for _ in range(5)))
            first = model._inner
            await model.complete("Hi", GREEDY)
            assert model._inner is first

    asyncio.run(ask())


def test_giving_up_while_a_model_loads_leaves_no_second_engine_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Engine.load

    def load_slowly(*args: Any, **options: Any) -> Engine:
        time.sleep(0.1)
        return load(*args, **options)

    monkeypatch.setattr(Engine, "load", load_slowly)

    async def ask() -> None:
        async with Model(str(folder)) as model:
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(model.complete("Hi", GREEDY), timeout=0.02)
            assert (await model.complete("Hi", GREEDY)).text
        async with Model(str(folder)) as model:  # closed before it was ever open
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(model.complete("Hi", GREEDY), timeout=0.02)

    asyncio.run(ask())
    assert not [thread.name for thread in threading.enumerate() if str(folder) in thread.name]


def test_a_closed_model_opens_again(folder: Path) -> None:
    async def ask() -> None:
        model = Model(str(folder))
        before = await model.complete("Hi", GREEDY)
        await model.aclose()
        after = await model.complete("Hi", GREEDY)
        await model.aclose()
        assert before.text == after.text

    asyncio.run(ask())


def test_a_model_without_a_template_says_how_to_choose_one(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "base", chat_template=False)

    async def ask() -> None:
        async with Model(str(folder)) as model:
            with pytest.raises(ConfigError, match="chat_template='plain'"):
                await model.complete("Hi", GREEDY)
        async with Model(str(folder), chat_template="plain") as model:
            reply = await model.complete([user("Hi")], GREEDY)
            assert reply.usage.prompt_tokens == len(b"user: Hi\nassistant:")

    asyncio.run(ask())


def test_a_template_may_come_from_a_file(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}<{{ message.content }}>{% endfor %}")

    async def ask() -> None:
        async with Model(write_tiny(tmp_path / "tiny"), chat_template=str(template)) as model:
            reply = await model.complete([user("Hi")], GREEDY)
            assert reply.usage.prompt_tokens == len(b"<Hi>")

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("address", "options", "named"),
    [
        ("runs/tiny", {"model": "x"}, "model='x'"),
        ("runs/tiny", {"api_key": "x"}, "api_key"),
        ("http://localhost:1/v1", {"chat_template": "plain"}, "chat_template='plain'"),
        ("runs/tiny", {"chat_template": "fancy"}, "'fancy' is neither 'plain' nor a file"),
    ],
)
def test_an_option_that_does_not_apply_is_refused(address: str, options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Model(address, **options)  # type: ignore[arg-type]  # the values are strings


def test_a_key_is_not_shown_in_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Model("runs/tiny", api_key="sk-secret")
    assert "sk-secret" not in str(caught.value)


def test_the_chat_floor_does_not_load_torch_or_a_server() -> None:
    code = (
        "import sys, tripod.chat.model, tripod.chat.scripted, tripod.chat.wrappers, tripod.chat.wire.openai; "
        "print([name for name in ('torch', 'starlette', 'httpx', 'tokenizers') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.strip() == "[]"
