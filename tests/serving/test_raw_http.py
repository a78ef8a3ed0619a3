"""Bytes on the wire, without a forgiving client: exact fields, framing, errors of every kind, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.serving.live_server import LiveServer, live_server
from tests.serving.tiny import NAME
from tripod.engine.engine import Engine
from tripod.errors import EngineError, OverloadedError
from tripod.sampling import SamplingParams
from tripod.serving.app import build_app
from tripod.serving.config import ServerConfig
from tripod.trace import Event, Finished

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0}
COMPLETION: dict[str, Any] = {"model": NAME, "prompt": "Hi", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.root, trust_env=False, timeout=30.0) as client:
        yield client


def frames_of(response: httpx.Response) -> list[str]:
    """The events of a stream, by the letter: "data: ..." and a blank line each."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *frames, rest = response.text.split("\n\n")
    assert rest == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [frame[6:] for frame in frames]


# --- exact fields


def test_a_completion_has_exactly_the_fields_of_the_api(http: httpx.Client) -> None:
    body = http.post("/v1/completions", json={**COMPLETION, "logprobs": 1}).json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage", "tripod"}
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert abs(body["created"] - time.time()) < 60
    assert set(body["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}
    assert set(body["choices"][0]["logprobs"]) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert set(body["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
    assert http.post("/v1/completions", json=COMPLETION).json()["choices"][0]["logprobs"] is None


def test_a_chat_completion_has_exactly_the_fields_of_the_api(http: httpx.Client) -> None:
    body = http.post("/v1/chat/completions", json={**CHAT, "logprobs": True, "top_logprobs": 1}).json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage", "tripod"}
    assert body["object"] == "chat.completion"
    choice = body["choices"][0]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal"}
    assert set(choice["logprobs"]) == {"content", "refusal"}
    assert set(choice["logprobs"]["content"][0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert set(choice["logprobs"]["content"][0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}


def test_a_chat_stream_is_framed_and_ended_as_the_api_says(http: httpx.Client) -> None:
    *chunks, done = frames_of(http.post("/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": True}}))
    assert done == "[DONE]"
    bodies = [json.loads(chunk) for chunk in chunks]
    assert {body["id"] for body in bodies} == {bodies[0]["id"]}
    assert all(set(body) - {"tripod"} == {"id", "object", "created", "model", "choices", "usage"} for body in bodies)
    assert ["tripod" in body for body in bodies] == [*[False] * (len(bodies) - 2), True, False]
    assert all(body["object"] == "chat.completion.chunk" for body in bodies)
    assert all(set(body["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"} for body in bodies[:-1])
    assert set(bodies[0]["choices"][0]["delta"]) == {"role", "content"}
    assert bodies[-2]["choices"][0]["delta"] == {}
    assert bodies[-1]["choices"] == []
    assert bodies[-1]["usage"]["completion_tokens"] > 0


def test_no_chunk_is_sent_for_a_piece_of_a_character(http: httpx.Client) -> None:
    body = {**CHAT, "max_tokens": 96, "ignore_eos": True, "stream": True}
    *chunks, _ = frames_of(http.post("/v1/chat/completions", json=body))
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert len(deltas) < 96, "the tiny model says random bytes, of which some wait for others"
    assert all(delta["content"] for delta in deltas[1:-1])


def test_chunks_have_no_usage_unless_it_is_asked_for(http: httpx.Client) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        *chunks, done = frames_of(http.post(path, json={**body, "stream": True}))
        assert done == "[DONE]"
        assert all("usage" not in json.loads(chunk) for chunk in chunks)


def test_the_model_list_says_how_long_a_request_may_be(http: httpx.Client, engine: Engine) -> None:
    body = http.get("/v1/models").json()
    assert set(body) == {"object", "data"}
    assert body["data"][0]["max_model_len"] == engine.max_context


# --- errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "not valid JSON"),
        (b'{"prompt": "x"}', "model is missing"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "temperature"),
        (b'{"model": "tiny", "prompt": "x", "temperature": 1e999}', "temperature"),
        (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 4000 + b"}", "seed"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_that_cannot_be_read_is_a_400_that_says_why(http: httpx.Client, content: bytes, message: str) -> None:
    response = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert message in response.json()["error"]["message"]


def test_a_body_of_another_type_is_a_400_that_names_the_header(http: httpx.Client) -> None:
    response = http.post("/v1/completions", data={"model": NAME})
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"])
def test_json_has_several_names(http: httpx.Client, content_type: str) -> None:
    response = http.post("/v1/completions", content=json.dumps(COMPLETION), headers={"content-type": content_type})
    assert response.status_code == 200


def test_an_unknown_path_and_a_wrong_method_have_the_same_shape(http: httpx.Client) -> None:
    unknown = http.post("/v1/complete", json={})
    assert unknown.status_code == 404
    assert "/v1/complete" in unknown.json()["error"]["message"]
    wrong = http.get("/v1/completions")
    assert wrong.status_code == 405
    assert "use POST" in wrong.json()["error"]["message"]
    assert wrong.headers["allow"] == "POST"


def test_more_choices_than_can_ever_wait_are_a_bad_request_and_no_overload(http: httpx.Client, engine: Engine) -> None:
    steps = engine.stats().steps
    response = http.post("/v1/completions", json={**COMPLETION, "prompt": ["a"] * 41, "n": 100})
    assert response.status_code == 400
    assert "4100" in response.json()["error"]["message"]
    assert "576" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "n"
    assert engine.stats().steps == steps


def test_a_body_over_the_limit_is_refused_while_it_is_read(engine: Engine) -> None:
    with (
        live_server(build_app(engine, config=ServerConfig(max_body_bytes=1000))) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        assert http.post("/completions", json={**COMPLETION, "prompt": "x" * 100}).status_code == 200
        response = http.post("/completions", json={**COMPLETION, "prompt": "x" * 2000})
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert "1000 bytes" in response.json()["error"]["message"]


class Failing:
    """The engine, except that its streams break: at once, or after some events."""

    def __init__(self, engine: Engine, error: Exception, *, after: int) -> None:
        self._engine = engine
        self._error = error
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def stream(self, prompt: str | Sequence[int], sampling: SamplingParams, **asked: Any) -> AsyncIterator[Event]:
        if not self._after:
            raise self._error
        num_events = 0
        async for event in self._engine.stream(prompt, sampling, **asked):
            yield event
            num_events += 1
            if num_events == self._after:
                raise self._error


def failing_server(engine: Engine, error: Exception, *, after: int) -> Any:
    return live_server(build_app(Failing(engine, error, after=after)))  # type: ignore[arg-type]  # all that the app uses is there


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_its_status(engine: Engine, stream: bool) -> None:
    with failing_server(engine, EngineError("the step failed"), after=0) as server:
        response = httpx.post(f"{server.url}/completions", json={**COMPLETION, "stream": stream}, trust_env=False)
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"


class Aborting:
    """The engine, except that somebody beside the server aborts every request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def stream(self, prompt: str | Sequence[int], sampling: SamplingParams, **asked: Any) -> AsyncIterator[Event]:
        async for event in self._engine.stream(prompt, sampling, **asked):
            yield replace(event, finish_reason="abort") if isinstance(event, Finished) else event


def test_an_answer_that_was_cut_by_an_abort_is_not_sent_as_whole(engine: Engine) -> None:
    with live_server(build_app(Aborting(engine))) as server:  # type: ignore[arg-type]  # all that the app uses is there
        assert httpx.post(f"{server.url}/completions", json=COMPLETION, trust_env=False).status_code == 500
        streamed = httpx.post(f"{server.url}/completions", json={**COMPLETION, "stream": True}, trust_env=False)
        assert "[DONE]" not in streamed.text
        assert "server_error" in frames_of(streamed)[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_an_overloaded_engine_says_when_to_come_back(engine: Engine, stream: bool) -> None:
    with failing_server(engine, OverloadedError("queue full", retry_after_s=2.2), after=0) as server:
        response = httpx.post(f"{server.url}/chat/completions", json={**CHAT, "stream": stream}, trust_env=False)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "3"
        assert response.json()["error"]["code"] == "overloaded"


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(engine: Engine) -> None:
    with failing_server(engine, EngineError("the step failed"), after=3) as server:
        response = httpx.post(f"{server.url}/completions", json={**COMPLETION, "stream": True}, trust_env=False, timeout=10.0)
        assert response.status_code == 200
        *chunks, last = frames_of(response)
        assert len(chunks) >= 1
        assert json.loads(last)["error"]["type"] == "server_error"
        whole = httpx.post(f"{server.url}/completions", json=COMPLETION, trust_env=False)
        assert whole.status_code == 500


# --- clients that go away


def is_idle(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.running == 0 and stats.waiting == 0 and stats.free_blocks + stats.cached_blocks == stats.total_blocks


def wait_until(condition: Any, *, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def long_request(path: str, **fields: Any) -> bytes:
    body = json.dumps({"model": NAME, "max_tokens": 490, "temperature": 0, "ignore_eos": True, **fields}).encode()
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        len(body),
        body,
    )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "Hi", "stream": True}),
        ("/v1/completions", {"prompt": "Hi", "n": 4}),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "stream": True, "n": 2}),
        ("/v1/chat/completions", {"messages": CHAT["messages"], "stream": True, "n": 3}),
        ("/v1/chat/completions", {"messages": CHAT["messages"]}),
    ],
    ids=["stream", "n", "prompts", "chat stream", "chat"],
)
def test_a_client_that_hangs_up_frees_its_blocks(server: LiveServer, engine: Engine, path: str, fields: dict[str, Any]) -> None:
    assert wait_until(lambda: is_idle(engine))
    generated_before = engine.stats().completion_tokens
    num_requests = fields.get("n", 1) * (len(fields["prompt"]) if isinstance(fields.get("prompt"), list) else 1)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(long_request(path, **fields))
        assert wait_until(lambda: engine.stats().running == num_requests)
        if fields.get("stream"):
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert wait_until(lambda: is_idle(engine))
    assert engine.stats().completion_tokens - generated_before < num_requests * 490  # it was stopped, not finished


def test_a_client_that_hangs_up_while_it_sends_is_no_failure_of_the_server(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(long_request("/v1/completions", prompt="Hi")[:-5])
        time.sleep(0.1)
        connection.close()
        time.sleep(0.2)
    assert caplog.text == ""


def test_a_request_beside_one_that_hangs_up_goes_on(server: LiveServer, engine: Engine, http: httpx.Client) -> None:
    expected = asyncio.run(engine.generate("Once", SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))).text
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(long_request("/v1/completions", prompt="Hi", stream=True))
        assert wait_until(lambda: engine.stats().running == 1)
        body = {**COMPLETION, "prompt": "Once", "max_tokens": 64, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            connection.close()
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert expected.endswith("".join(chunk["choices"][0]["text"] for chunk in rest))
    assert rest[-1]["choices"][0]["finish_reason"] == "length"


def test_connections_that_are_closed_on_one_side_stall_nobody(server: LiveServer, engine: Engine, http: httpx.Client) -> None:
    expected = asyncio.run(engine.generate("Once", SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))).text
    whole = long_request("/v1/completions", prompt="Hi", stream=True)
    with ExitStack() as connections:
        for content in (whole, whole[:-5], whole[:40], b""):  # in the answer, the body, the headers, and before anything
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)  # we say no more, and still read nothing
        answer = http.post("/v1/completions", json={**COMPLETION, "prompt": "Once", "max_tokens": 64, "ignore_eos": True}).json()
        assert answer["choices"][0]["text"] == expected
        assert wait_until(lambda: is_idle(engine))  # while all four are still open on our side


# --- health, metrics, the document


def test_health_answers(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200


def sample(text: str, name: str) -> float:
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_metrics_count_what_was_done(engine: Engine) -> None:
    with live_server(build_app(engine)) as server, httpx.Client(base_url=server.root, trust_env=False) as http:
        usages = [http.post("/v1/completions", json={**COMPLETION, "ignore_eos": True, "n": n}).json()["usage"] for n in (1, 2)]
        http.post("/v1/completions", json={**COMPLETION, "max_tokens": 10_000})
        text = http.get("/metrics").text
        assert sample(text, "tripod_generation_tokens_total") == sum(usage["completion_tokens"] for usage in usages) == 18
        assert sample(text, "tripod_prompt_tokens_total") == 3 * 2  # each choice reads the prompt
        assert sample(text, 'tripod_request_success_total{finished_reason="length"}') == 3
        assert sample(text, "tripod_num_failed_requests_total") == 1
        assert sample(text, "tripod_time_to_first_token_seconds_count") == 3
        assert sample(text, "tripod_inter_token_latency_seconds_count") == 3 * 5
        assert sample(text, "tripod_e2e_request_latency_seconds_count") == 3
        assert sample(text, "tripod_e2e_request_latency_seconds_sum") >= sample(text, "tripod_time_to_first_token_seconds_sum") > 0
        assert sample(text, "tripod_num_requests_running") == 0
        assert sample(text, "tripod_kv_cache_usage_perc") == 0


def test_metrics_see_a_running_request_and_its_abort(engine: Engine) -> None:
    with live_server(build_app(engine)) as server, httpx.Client(base_url=server.root, trust_env=False) as http:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(long_request("/v1/completions", prompt="Hi", stream=True))
            assert wait_until(lambda: sample(http.get("/metrics").text, "tripod_num_requests_running") == 1)
            assert 0 < sample(http.get("/metrics").text, "tripod_kv_cache_usage_perc") <= 1
        assert wait_until(lambda: sample(http.get("/metrics").text, "tripod_num_aborted_requests_total") == 1)


def test_the_openapi_document_describes_every_route_and_resolves(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/{model}", "/tokenize", "/detokenize"),
        *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/apps/{app}"),
        *("/health", "/health/live", "/health/ready", "/metrics", "/debug/steps"),
    }
    schemas = document["components"]["schemas"]

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} <= set(schemas)
    assert schemas["ChatBody"]["additionalProperties"] is False
