"""The HTTP client: against our server it keeps the contract; against others it reads what they really send."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import NAME, open_tiny, write_tiny
from tripod.chat.http import HttpChatModel
from tripod.chat.local import LocalChatModel
from tripod.chat.model import Model
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    ModelTimeoutError,
    NotFoundError,
    OverloadedError,
    RequestError,
    TripodError,
)
from tripod.messages import File, Message, Reply, ToolCall, ToolSpec, user
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.sampling import SamplingParams
from tripod.serving.app import build_app
from tripod.serving.server import bind
from tripod.testing.chat_model import ChatModelContract
from tripod.trace import fold

QUESTION = Prompt.of("Say something.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = open_tiny(folder, EngineConfig())
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[LiveServer]:
    with live_server(build_app(engine)) as server:
        yield server


async def completed(model: ChatModel, sampling: SamplingParams = SamplingParams()) -> Reply:
    return await model.complete(QUESTION, sampling)


async def streamed(model: ChatModel, sampling: SamplingParams = SamplingParams()) -> Reply:
    return await fold(model.stream(QUESTION, sampling))


both_ways = pytest.mark.parametrize("way", [completed, streamed])


class TestHttpChatModel(ChatModelContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: LiveServer, engine: Engine) -> None:
        self.server = server
        self.engine = engine

    @asynccontextmanager
    async def open_model(self) -> AsyncIterator[ChatModel]:
        async with HttpChatModel(self.server.url, model=NAME) as model:
            yield model

    def num_running(self, model: ChatModel) -> int:
        return self.engine.stats().running + self.engine.stats().waiting


class TestModelOverHttp(TestHttpChatModel):
    @asynccontextmanager
    async def open_model(self) -> AsyncIterator[ChatModel]:
        async with Model(self.server.url) as model:  # the server has one model, so it needs no name
            yield model


class TestModelInProcess(ChatModelContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.folder = folder

    @asynccontextmanager
    async def open_model(self) -> AsyncIterator[ChatModel]:
        async with Model(str(self.folder)) as model:
            yield model

    def num_running(self, model: ChatModel) -> int:
        assert isinstance(model, Model)
        assert isinstance(model._inner, LocalChatModel)
        return model._inner.engine.stats().running


@both_ways
def test_the_answer_over_http_is_the_engines_in_every_part(server: LiveServer, engine: Engine, way: Callable[..., Any]) -> None:
    sampling = SamplingParams(
        temperature=0.8, seed=7, max_tokens=24, logprobs=2, top_k=40, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.1, logit_bias={65: 3.0}, min_tokens=2, top_p=0.95, stop=("never this",), stop_token_ids=(66,),
    )  # fmt: skip

    async def ask() -> tuple[Reply, Reply]:
        await completed(LocalChatModel(engine))  # so that both find the prompt in the prefix cache
        async with HttpChatModel(server.url, model=NAME) as model:
            return await way(model, sampling), await way(LocalChatModel(engine), sampling)

    over_http, local = asyncio.run(ask())
    assert over_http.text == local.text
    assert over_http.finish_reason == local.finish_reason
    assert over_http.usage == local.usage
    assert over_http.usage.cached_tokens > 0
    assert over_http.model == local.model == NAME
    assert [entry.token_bytes for entry in over_http.logprobs] == [entry.token_bytes for entry in local.logprobs]
    assert [len(entry.top) for entry in over_http.logprobs] == [2] * len(local.logprobs)
    assert all(math.isclose(a.logprob, b.logprob, abs_tol=1e-5) for a, b in zip(over_http.logprobs, local.logprobs, strict=True))
    assert over_http.timings.decode_s > 0


@both_ways
@pytest.mark.parametrize(
    ("model", "sampling", "error", "param"),
    [
        ("gpt-9", SamplingParams(), NotFoundError, "model"),
        (NAME, SamplingParams(max_tokens=100_000), ContextLengthError, None),
        (NAME, SamplingParams(logit_bias={99_999: 1.0}), RequestError, "logit_bias"),
    ],
)
def test_errors_of_our_server_come_back_as_what_they_were(
    server: LiveServer, way: Callable[..., Any], model: str, sampling: SamplingParams, error: type[RequestError], param: str | None
) -> None:
    async def ask() -> None:
        async with HttpChatModel(server.url, model=model) as client:
            await way(client, sampling)

    with pytest.raises(error) as caught:
        asyncio.run(ask())
    assert type(caught.value) is error
    assert param is None or caught.value.param == param
    assert server.url in str(caught.value)


# --- servers that are not ours, answering what the test says


@contextmanager
def answering(answer: Callable[[Request], Any]) -> Iterator[str]:
    async def endpoint(request: Request) -> Response:
        response = answer(request)
        return response if isinstance(response, Response) else await response

    with live_server(Starlette(routes=[Route("/health", _ready), Route("/v1/{path:path}", endpoint, methods=["GET", "POST"])])) as server:
        yield server.url


async def _ready(_: Request) -> Response:
    return Response()


@both_ways
def test_a_server_that_knows_the_limit_by_its_newer_name_alone_is_told_it_by_that(way: Callable[..., Any]) -> None:
    asked: list[dict[str, Any]] = []

    async def answer(request: Request) -> Response:
        asked.append(body := json.loads(await request.body()))
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "param": "max_tokens"}}, 400)
        choice = {"index": 0, "finish_reason": "stop"}
        if not body.get("stream"):
            return JSONResponse({"choices": [choice | {"message": {"role": "assistant", "content": "Yes."}}]})
        chunk = {"choices": [choice | {"delta": {"content": "Yes."}}]}
        return StreamingResponse(iter((f"data: {json.dumps(chunk)}\n\n", "data: [DONE]\n\n")), media_type="text/event-stream")

    async def ask(url: str) -> None:
        async with HttpChatModel(url, model="new") as model:
            for _ in range(2):
                assert (await way(model, SamplingParams(max_tokens=7))).text == "Yes."

    with answering(answer) as url:
        asyncio.run(ask(url))
    assert [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in asked] == [(7, None), (None, 7), (None, 7)]


def ask(url: str, way: Callable[..., Any] = completed, **options: Any) -> Reply:
    async def asked() -> Reply:
        async with HttpChatModel(url, **{"model": "m", **options}) as model:
            return await way(model)

    return asyncio.run(asked())


def error_response(status: int, message: str, headers: dict[str, str] | None = None, **fields: Any) -> Callable[[Request], Response]:
    body = {"error": {"message": message, "type": "x", "param": None, "code": None, **fields}}
    return lambda _: JSONResponse(body, status_code=status, headers=headers)


@both_ways
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RequestError),
        (401, ConfigError),
        (403, ConfigError),
        (404, NotFoundError),
        (408, ModelTimeoutError),
        (413, RequestError),
        (422, RequestError),
        (429, OverloadedError),
        (500, EngineError),
        (502, EngineError),
        (503, OverloadedError),  # RFC 9110, 15.6.4: it will be alleviated after some delay
        (504, ModelTimeoutError),
    ],
)
def test_each_status_is_its_reaction(way: Callable[..., Any], status: int, expected: type[TripodError]) -> None:
    with answering(error_response(status, "the reason")) as url, pytest.raises(expected, match="the reason") as caught:
        ask(url, way)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("7", 7.0), ("0.5", 0.5), ("soon", 1.0), ("inf", 1.0), (None, 1.0)),
        *((formatdate(2**31, usegmt=True), None), (formatdate(0, usegmt=True), 0.0)),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float | None) -> None:
    with (
        answering(error_response(429, "full", {"retry-after": header} if header else None)) as url,
        pytest.raises(OverloadedError) as caught,
    ):
        ask(url)
    if seconds is None:
        assert caught.value.retry_after_s > 1e6  # the date is in 2038
    else:
        assert caught.value.retry_after_s == seconds


def test_an_error_that_is_not_json_is_shown_as_it_is() -> None:
    with answering(lambda _: Response("<h1>Bad gateway</h1>", status_code=502)) as url, pytest.raises(EngineError, match="Bad gateway"):
        ask(url)


@both_ways
def test_nobody_at_the_address_says_so_and_what_to_do(way: Callable[..., Any]) -> None:
    with bind("127.0.0.1", 0) as taken:  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=f"no server answers at {url} .*tripod serve"):
            ask(url, way)


def test_an_address_that_is_none_is_the_callers_mistake() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:8000/v1"):
        ask("http://[::1/v1")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:8000/v1"):
        ask("ftp://localhost/v1")


@both_ways
def test_a_page_that_is_not_the_api_is_an_error_that_doubts_the_address(way: Callable[..., Any]) -> None:
    with answering(lambda _: Response("<html>", media_type="text/html")) as url, pytest.raises(EngineError):
        ask(url, way)


@both_ways
def test_a_server_that_is_silent_for_too_long_is_a_timeout(way: Callable[..., Any]) -> None:
    async def silent(_: Request) -> Response:
        await asyncio.sleep(3600)
        return Response()

    with answering(silent) as url, pytest.raises(ModelTimeoutError):
        ask(url, way, read_timeout_s=0.1)


def sse(*events: str) -> Callable[[Request], Response]:
    return lambda _: Response("".join(events), media_type="text/event-stream")


def chunk(text: str | None = None, reason: str | None = None) -> str:
    delta = {} if text is None else {"content": text}
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}, ensure_ascii=False) + "\n\n"


def test_a_stream_of_another_server_is_read() -> None:
    events = [
        ": keep-alive\n\n",
        chunk("one\u2028"),
        "event: ping\r\ndata: " + chunk(" two")[6:-2] + "\r\n\r\n",
        chunk(None, "stop"),
        "data: [DONE]\n\n",
    ]
    with answering(sse(*events)) as url:
        reply = ask(url, streamed)
    assert reply.text == "one\u2028 two"  # a line separator inside a text does not end the line
    assert reply.finish_reason == "stop"
    assert reply.usage.total_tokens == 0  # it told none
    assert reply.model == "m"


def test_a_stream_may_be_cut_anywhere_by_the_network() -> None:
    content = (chunk("grün ") + chunk("日本") + chunk(None, "length") + "data: [DONE]\n\n").encode()

    async def bytewise() -> AsyncIterator[bytes]:
        for i in range(len(content)):
            yield content[i : i + 1]

    with answering(lambda _: StreamingResponse(bytewise(), media_type="text/event-stream")) as url:
        reply = ask(url, streamed)
    assert reply.text == "grün 日本"
    assert reply.finish_reason == "length"


def test_streams_one_after_the_other_share_a_connection() -> None:
    ports: set[int] = set()

    async def answer(request: Request) -> Response:
        async def said() -> AsyncIterator[str]:
            for event in (chunk("hi"), chunk("", "stop"), "data: [DONE]\n\n"):
                yield event
                await asyncio.sleep(0)

        ports.add(request.scope["client"][1])
        return StreamingResponse(said(), media_type="text/event-stream")

    async def thrice(url: str) -> None:
        async with HttpChatModel(url, model="m") as model:
            for _ in range(3):
                assert (await fold(model.stream(Prompt.of("?"), SamplingParams()))).text == "hi"

    with answering(answer) as url:
        asyncio.run(thrice(url))
    assert len(ports) == 1


@pytest.mark.parametrize("events", [[chunk("half")], [chunk("half"), "data: [DONE]\n\n"], []])
def test_a_stream_that_breaks_off_is_an_error_and_no_short_answer(events: list[str]) -> None:
    with answering(sse(*events)) as url, pytest.raises(EngineError, match="before the answer was finished"):
        ask(url, streamed)


@pytest.mark.parametrize(
    ("kind", "expected"), [("server_error", EngineError), ("invalid_request_error", RequestError), ("rate_limit_error", OverloadedError)]
)
def test_an_error_inside_a_stream_rises(kind: str, expected: type[TripodError]) -> None:
    error = "data: " + json.dumps({"error": {"message": "it broke", "type": kind}}) + "\n\n"
    with answering(sse(chunk("half"), error)) as url, pytest.raises(expected, match="it broke"):
        ask(url, streamed)


def test_what_a_server_says_beyond_the_standard_is_kept() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "timings": {"cache_n": 3}}
    with answering(lambda _: JSONResponse(body)) as url:
        reply = ask(url)
    assert reply.text == "4"
    assert reply.message.reasoning == "2 + 2"
    assert reply.extra == {"timings": {"cache_n": 3}}


def test_tool_calls_are_read_whole_and_in_pieces() -> None:
    """Bodies as api.openai.com sends them."""
    first = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    second = {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    body = {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [first, second]}, "finish_reason": "tool_calls"}
        ]
    }
    pieces: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **first, "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {"tool_calls": [{"index": 1, **second}]},
    ]
    chunks = ["data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) + "\n\n" for delta in pieces]
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "now", "{}"))
    with answering(lambda _: JSONResponse(body)) as url:
        assert ask(url).message == Message("assistant", "", calls)
    with answering(sse(*chunks, chunk(None, "tool_calls"), "data: [DONE]\n\n")) as url:
        assert ask(url, streamed).message == Message("assistant", "", calls)


# --- what the client sends


def sent_body(
    messages: list[Message] | Prompt, sampling: SamplingParams, way: str = "complete", **options: Any
) -> tuple[dict[str, Any], Any]:
    seen: list[Any] = []

    async def record(request: Request) -> Response:
        seen.append((await request.json(), request.headers))
        return error_response(500, "seen")(request)

    async def asked() -> None:
        async with HttpChatModel(url, **{"model": "m", **options}) as model:
            if way == "stream":
                await fold(model.stream(Prompt.of(messages), sampling))
            else:
                await model.complete(Prompt.of(messages), sampling)

    with answering(record) as url, pytest.raises(EngineError):
        asyncio.run(asked())
    return seen[0]  # type: ignore[no-any-return]


def test_only_what_differs_from_the_defaults_is_sent() -> None:
    body, headers = sent_body([user("Hi")], SamplingParams())
    assert body == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1.0, "top_p": 1.0}
    assert "authorization" not in headers


def test_everything_that_was_asked_for_is_sent() -> None:
    call = ToolCall("c1", "add", '{"a": 1}')
    messages = [user("Hi"), Message("assistant", "", (call,)), Message("tool", "4", tool_call_id="c1")]
    sampling = SamplingParams(temperature=0.0, stop=("a", "b"), seed=0, max_tokens=5, logprobs=0, logit_bias={3: -1.5}, ignore_eos=True)
    body, _ = sent_body(messages, sampling, "stream")
    assert body == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": ["a", "b"],
        "seed": 0,
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 0,
        "logit_bias": {"3": -1.5},
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_tools_and_the_choice_among_them_are_sent() -> None:
    tool = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
    sent, _ = sent_body(Prompt.of("Hi", tools=(tool,), tool_choice="add"), SamplingParams())
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert sent_body(Prompt.of("Hi", tools=(tool,)), SamplingParams())[0]["tool_choice"] == "auto"


def test_images_and_files_are_sent_where_they_stand() -> None:
    image, page = (
        File(media_type="image/png", url="https://example.org/a.png"),
        File(media_type="application/pdf", data=b"%PDF", name="a.pdf"),
    )
    sent, _ = sent_body([user("See ", image, " and ", page)], SamplingParams())
    assert sent["messages"][0]["content"] == [
        {"type": "text", "text": "See "},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "text", "text": " and "},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
    ]


def test_the_key_comes_from_the_argument_or_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "from-the-environment")
    assert sent_body([user("Hi")], SamplingParams(), api_key="given")[1]["authorization"] == "Bearer given"
    assert sent_body([user("Hi")], SamplingParams(), api_key_env="SOME_KEY")[1]["authorization"] == "Bearer from-the-environment"
    with pytest.raises(ConfigError, match="OTHER_KEY is not set"):
        HttpChatModel("http://localhost/v1", api_key_env="OTHER_KEY")
    with pytest.raises(ConfigError, match="both given"):
        HttpChatModel("http://localhost/v1", api_key="a", api_key_env="SOME_KEY")


def test_what_the_wire_cannot_carry_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RequestError, match="prompt_logprobs"):
        asyncio.run(HttpChatModel("http://127.0.0.1:1/v1", model="m").complete(QUESTION, SamplingParams(prompt_logprobs=1)))
    with pytest.raises(RequestError, match="temperature"):
        asyncio.run(HttpChatModel("http://127.0.0.1:1/v1", model="m").complete(QUESTION, SamplingParams(temperature=5.0)))


def test_the_client_lets_the_server_say_how_many_requests_are_too_many(server: LiveServer) -> None:
    async def begin() -> int:
        async with HttpChatModel(server.url) as model:
            streams = [model.stream(QUESTION, SamplingParams(max_tokens=2)) for _ in range(110)]  # httpx would stop at 100
            first = await asyncio.wait_for(asyncio.gather(*map(anext, streams)), timeout=30)
            for stream in streams:
                await stream.aclose()
            return len(first)

    assert asyncio.run(begin()) == 110


def test_a_server_with_several_models_must_be_told_which() -> None:
    models = {"object": "list", "data": [{"id": "a"}, {"id": "b"}]}
    with answering(lambda _: JSONResponse(models)) as url, pytest.raises(ConfigError, match=r"2 models \(a, b\)"):
        ask(url, model=None)


@both_ways
def test_cancelling_closes_the_connection(server: LiveServer, engine: Engine, way: Callable[..., Any]) -> None:
    async def cancelled() -> None:
        async with HttpChatModel(server.url, model=NAME) as model:
            task = asyncio.create_task(way(model, SamplingParams(max_tokens=450, ignore_eos=True)))
            async with asyncio.timeout(10):
                while not engine.stats().running:
                    await asyncio.sleep(0.005)
                task.cancel()
                while engine.stats().running:
                    await asyncio.sleep(0.005)

    asyncio.run(cancelled())
