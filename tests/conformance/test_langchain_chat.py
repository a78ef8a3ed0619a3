"""LangChain's own suite for chat models: its unmodified ChatOpenAI, pointed at our server. So it is the server that is tested.

Which model stands behind it depends on what a test asserts:

- the form of an answer: an engine with random weights and 8,192 tokens of context, held to tools and schemas by constrained decoding;
- words that only a model that follows instructions finds: the same server before a script, which is listed in `SCRIPTS`.

`pytest tests/conformance/test_langchain_chat.py --model FOLDER` asks all of it of a real model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="run: pip install 'tripod[conformance]'")
pytest.importorskip("langchain_openai", reason="run: pip install 'tripod[conformance]'")

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import NAME, open_tiny, write_tiny
from tripod.chat.scripted import ScriptedModel
from tripod.engine.engine import Engine, EngineConfig
from tripod.messages import ToolCall
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.serving.app import build_app
from tripod.trace import Event

JOKE = json.dumps({"setup": "Why did the cat sit on the computer?", "punchline": "To keep an eye on the mouse."})
MAGIC = ToolCall("call1", "magic_function", '{"input": 3}')
WEATHER = ToolCall("call1", "get_weather", '{"location": "San Francisco, CA"}')


def customer(name: str) -> ToolCall:
    return ToolCall("call1", "unicode_customer", json.dumps({"customer_name": name, "description": "A company."}, ensure_ascii=False))


SCRIPTS: dict[str, list[Any]] = {  # test -> what the model says, request by request
    "test_tool_calling": [MAGIC, MAGIC],  # it must understand "magic_function(3)"
    "test_tool_calling_async": [MAGIC, MAGIC],
    "test_agent_loop": [WEATHER, "It is sunny."],  # it must call once, and by itself
    "test_json_mode": [JOKE] * 4,  # the prompt alone says which keys the object has
    "test_unicode_tool_call_integration": [customer("你好啊集团"), customer("こんにちは株式会社")],  # it must copy the name
}
SCRIPTED = "scripted"
BIAS = {ord('"'): 8, ord("}"): 8, 256: 8, 258: 8, ord("\n"): -100}  # weights of chance would write strings and calls without end


class Actor:
    """Says what the script of the running test says."""

    def __init__(self) -> None:
        self.script = ScriptedModel([])

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Any:
        return await self.script.complete(prompt, sampling)

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        async for event in self.script.stream(prompt, sampling):
            yield event


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor()


@pytest.fixture(scope="module")
def real_model(request: pytest.FixtureRequest) -> str | None:
    given: str | None = request.config.getoption("--model", None)
    return given


@pytest.fixture(scope="module")
def server(actor: Actor, real_model: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with ExitStack() as resources:
        if real_model is not None:
            engine = Engine.load(real_model, name=NAME)
        else:
            folder = write_tiny(tmp_path_factory.mktemp("models") / "tiny", max_positions=8192)
            engine = open_tiny(folder, EngineConfig())
        resources.callback(lambda: asyncio.run(engine.aclose()))
        yield resources.enter_context(live_server(build_app(engine, apps={SCRIPTED: actor})))


# Both are of ChatOpenAI alone: how it reads what the openai client parsed, and that it takes another way for pydantic's old models.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings", "ignore:Received a Pydantic BaseModel V1 schema")
class TestChatOpenAI(ChatModelIntegrationTests):
    """Nothing is skipped but what needs images, sound and PDF, which models of text do not read, and a recorder of HTTP."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self._params

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return False  # Anthropic's blocks inside OpenAI's messages; Anthropic's own API is served at /v1/messages

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def model_override_value(self) -> str:
        return SCRIPTED

    @pytest.fixture(autouse=True)
    def stage(self, request: pytest.FixtureRequest, server: LiveServer, actor: Actor, real_model: str | None) -> None:
        """Who answers this test."""
        name = request.function.__name__
        script = None if real_model is not None else SCRIPTS.get(name)
        self._params = {
            "model": NAME if script is None else SCRIPTED,
            "base_url": server.url,
            "api_key": "unused",
            "max_retries": 0,
            "stream_usage": True,  # which it asks for by itself only at OpenAI's address
            **({"seed": 1, "max_tokens": 300, "logit_bias": BIAS} if script is None and real_model is None else {}),
        }
        actor.script = ScriptedModel(script if script is not None else ["Hello."] * 4)

    @pytest.fixture
    def benchmark(self) -> None:
        """Asked for by `test_stream_time`, which runs on recordings alone."""

    @pytest.fixture
    def vcr(self) -> None:
        """The same."""


class TestChatOpenAIByResponses(TestChatOpenAI):
    """The same over /v1/responses."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        kept = {name: value for name, value in self._params.items() if name not in ("seed", "logit_bias", "stream_usage")}
        own = {name: self._params[name] for name in ("seed", "logit_bias") if name in self._params}  # which this API has no words for
        return {**kept, "use_responses_api": True, "extra_body": own}


def test_every_script_is_of_a_test_that_there_is() -> None:
    assert all(hasattr(TestChatOpenAI, name) for name in SCRIPTS)
