"""Applications under a model's name: a function, a generator or a model, by every API and by their own path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai
import pytest

import tripod
from tests.serving.live_server import LiveServer, live_server
from tripod.chat.scripted import ScriptedModel
from tripod.errors import ConfigError, RequestError
from tripod.messages import Message, ToolCall, Usage
from tripod.prompts import Prompt
from tripod.retrieval.index import Index
from tripod.serving.app import build_app
from tripod.trace import Delta


@dataclass(frozen=True)
class Found:
    text: str
    places: tuple[str, ...]
    usage: Usage = field(default_factory=lambda: Usage(prompt_tokens=3, completion_tokens=2))


@dataclass(frozen=True)
class Place:
    text: str
    places: list[str]


async def found(prompt: Prompt) -> Found:
    return Found(f"Asked: {prompt.messages[-1].text}", ("a.md", "b.md"))


async def letters(prompt: Prompt) -> AsyncIterator[object]:
    for letter in prompt.messages[-1].text:
        yield letter
    yield Delta(text="!")


async def numbers(prompt: Prompt) -> object:
    return {"length": len(prompt.messages)}


async def refuses(prompt: Prompt) -> str:
    raise RequestError("nothing is known of that; ask otherwise", param="messages")


async def breaks(prompt: Prompt) -> AsyncIterator[str]:
    yield "So"
    raise ValueError("a secret")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    called = ScriptedModel([ToolCall("a1", "now", "{}")] * 9)
    apps = {"found": found, "letters": letters, "numbers": numbers, "refuses": refuses, "breaks": breaks, "model": called}
    with live_server(build_app(None, apps=apps)) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.root, trust_env=False, timeout=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, model: str) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])


def test_a_function_answers_under_its_name(client: openai.OpenAI) -> None:
    completion = ask(client, "found")
    assert completion.choices[0].message.content == "Asked: Hi"
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 2)
    assert ask(client, "numbers").choices[0].message.content == '{"length": 1}'
    assert {model.id for model in client.models.list()} == {"found", "letters", "numbers", "refuses", "breaks", "model"}


def test_a_generator_streams_its_pieces(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(model="letters", messages=[{"role": "user", "content": "Hi"}], stream=True)
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert [piece for piece in pieces if piece] == ["H", "i", "!"]


def test_every_api_speaks_for_an_app(server: LiveServer, client: openai.OpenAI) -> None:
    assert client.responses.create(model="found", input="Hi").output_text == "Asked: Hi"
    with anthropic.Anthropic(base_url=server.root, api_key="unused", max_retries=0) as other:
        message = other.messages.create(model="found", messages=[{"role": "user", "content": "Hi"}], max_tokens=9)
    assert message.content[0].text == "Asked: Hi"


def test_a_models_calls_of_tools_go_through(client: openai.OpenAI) -> None:
    choice = ask(client, "model").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.tool_calls[0].id, choice.message.tool_calls[0].function.name) == ("a1", "now")


def test_reasoning_comes_apart_from_the_answer_and_goes_back_as_what_it_was() -> None:
    model = ScriptedModel([Message("assistant", "Yes.", reasoning="Hm.")] * 3)
    with (
        live_server(build_app(None, apps={"thinker": model})) as server,
        openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client,
    ):
        whole = ask(client, "thinker").choices[0].message
        stream = client.chat.completions.create(model="thinker", messages=[{"role": "user", "content": "Hi"}], stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        turns: Any = [{"role": "user", "content": "Hi"}, whole.model_dump(), {"role": "user", "content": "Sure?"}]
        client.chat.completions.create(model="thinker", messages=turns)
    assert (whole.content, whole.reasoning_content) == ("Yes.", "Hm.")
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hm."
    assert "".join(delta.content or "" for delta in deltas) == "Yes."
    assert model.prompts[2].messages[1] == Message("assistant", "Yes.", reasoning="Hm.")


def test_its_own_path_gives_all_of_the_answer(http: httpx.Client) -> None:
    body = http.post("/apps/found", json={"input": "Hi"}).json()
    assert body["text"] == "Asked: Hi"
    assert body["result"]["places"] == ["a.md", "b.md"]
    assert body["usage"]["total_tokens"] == 5
    assert http.post("/apps/letters", json={"messages": [{"role": "user", "content": "Yes"}]}).json()["text"] == "Yes!"


def test_its_own_path_streams(http: httpx.Client) -> None:
    text = http.post("/apps/found", json={"input": "Hi", "stream": True}).text
    assert text.splitlines()[0] == 'data: {"app":"found","text":"Asked: Hi"}'
    assert '"places":["a.md","b.md"]' in text.splitlines()[2]
    assert text.endswith("data: [DONE]\n\n")


def test_errors_of_an_app_are_the_callers_or_ours(http: httpx.Client) -> None:
    refused = http.post("/apps/refuses", json={"input": "Hi"})
    assert refused.status_code == 400
    assert "ask otherwise" in refused.json()["error"]["message"]
    broken = http.post("/apps/breaks", json={"input": "Hi"})
    assert broken.status_code == 500
    assert "secret" not in broken.text
    streamed = http.post("/apps/breaks", json={"input": "Hi", "stream": True})
    assert streamed.text.splitlines()[0] == 'data: {"app":"breaks","text":"So"}'
    assert '"type":"server_error"' in streamed.text
    assert "[DONE]" not in streamed.text


def test_what_is_not_there_or_not_asked_is_refused(http: httpx.Client) -> None:
    assert http.post("/apps/nobody", json={"input": "Hi"}).status_code == 404
    assert http.post("/apps/found", json={}).status_code == 400
    assert http.post("/apps/found", json={"input": "Hi", "messages": [{"role": "user", "content": "x"}]}).status_code == 400
    completion = http.post("/v1/completions", json={"model": "found", "prompt": "Hi"})
    assert completion.status_code == 400
    assert "is an application" in completion.json()["error"]["message"]


def test_an_agent_answers_with_its_own_tools_and_its_typed_result() -> None:
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    words = ScriptedModel([ToolCall("1", "double", '{"number": 21}'), "It is 42."])
    typed = ScriptedModel([ToolCall("1", "answer", '{"text": "42", "places": []}')])
    apps: Any = {"words": tripod.Agent(words, [double]), "typed": tripod.Agent(typed, returns=Place)}
    with (
        live_server(build_app(None, apps=apps)) as server,
        openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client,
    ):
        choice = ask(client, "words").choices[0]
        body = httpx.post(f"{server.root}/apps/typed", json={"input": "Hi"}, trust_env=False, timeout=60.0).json()
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("It is 42.", None, "stop")
    assert words.prompts[1].messages[-1].text == "42"  # what the tool gave
    assert body["result"] == {"text": "42", "places": []}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tools", {"tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
    ],
)
def test_what_only_a_model_can_do_is_refused_by_a_function(client: openai.OpenAI, name: str, given: dict[str, Any]) -> None:
    with pytest.raises(
        openai.BadRequestError, match=f"'found' is an application, which has its own tools and form of answer; leave {name} out"
    ):
        client.chat.completions.create(model="found", messages=[{"role": "user", "content": "a"}], **given)


def test_what_cannot_answer_is_no_application() -> None:
    with pytest.raises(ConfigError, match="the application 'three' is a int; give a function of the prompt, an agent or a ChatModel"):
        build_app(None, apps={"three": 3})  # type: ignore[dict-item]


def test_names_must_differ() -> None:
    with pytest.raises(ConfigError, match="two of what is served have one name"):
        build_app(None, embedder=_Encoder(), embedder_name="found", apps={"found": found})


class _Encoder:
    dim = 1
    max_tokens = 1

    def count_tokens(self, texts: Any) -> list[int]:
        return [1] * len(texts)

    def encode(self, texts: Any) -> Any:
        raise NotImplementedError


def test_an_ask_is_served_with_its_citations(tmp_path: Any) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "cache.md").write_text("Blocks are freed when a request finishes.\n")

    async def handbook(prompt: Prompt) -> object:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.sync(folder)
            return await tripod.ask(prompt.messages[-1].text, index)

    with live_server(build_app(None, apps={"handbook": handbook})) as server:
        body = httpx.post(f"{server.root}/apps/handbook", json={"input": "When are blocks freed?"}, trust_env=False, timeout=60.0).json()
    assert "freed when a request finishes" in body["text"]
    assert "cache.md" in str(body["result"]["citations"])
