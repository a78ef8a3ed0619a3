"""What the server promises under load, impatience and an engine that hangs."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.live_server import LiveServer, live_server
from tests.serving.test_raw_http import frames_of, is_idle, long_request, sample, wait_until
from tests.serving.tiny import NAME, open_tiny
from tripod.engine.engine import Engine, EngineConfig
from tripod.serving.app import build_app
from tripod.serving.config import ServerConfig

COMPLETION: dict[str, Any] = {"model": NAME, "prompt": "Hi", "max_tokens": 6, "temperature": 0}
LONG: dict[str, Any] = {**COMPLETION, "max_tokens": 490, "ignore_eos": True}


@contextmanager
def hung(engine: Engine) -> Iterator[None]:
    """The engine's thread waits between two steps until the block is left."""
    begun, go_on = threading.Event(), threading.Event()

    async def hang() -> None:
        await engine.between_steps(lambda: (begun.set(), go_on.wait(30.0)))

    hanging = threading.Thread(target=lambda: asyncio.run(hang()))
    hanging.start()
    assert begun.wait(10.0)
    try:
        yield
    finally:
        go_on.set()
        hanging.join()


@contextmanager
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.root, trust_env=False, timeout=30.0) as http:
        yield http


# --- admission


def test_a_full_queue_refuses_at_once_while_the_engine_does_nothing(engine: Engine) -> None:
    config = ServerConfig(max_waiting_requests=2)
    with live_server(build_app(engine, config=config)) as server, client(server) as http, hung(engine):
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(66)]  # 64 that the engine may run, 2 that wait
        try:
            for connection in held:
                connection.sendall(long_request("/v1/completions", prompt="Hi"))
            assert wait_until(lambda: sample(http.get("/metrics").text, "tripod_num_requests_admitted") == 66)
            refused = http.post("/v1/completions", json={**COMPLETION, "prompt": "x" * 400_000})  # not even tokenized
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "overloaded"
            text = http.get("/metrics").text
            assert sample(text, 'tripod_num_rejected_requests_total{status="429"}') == 1
            assert sample(text, "tripod_reject_time_seconds_sum") < 0.5  # this machine may be busy; `make campaign NAME=overload` measures
        finally:
            for connection in held:
                connection.close()
        assert wait_until(lambda: sample(http.get("/metrics").text, "tripod_num_requests_admitted") == 0)
    assert wait_until(lambda: is_idle(engine))


def test_a_tenant_is_who_its_header_or_its_user_field_says(engine: Engine) -> None:
    config = ServerConfig(max_tenant_requests=1)
    with live_server(build_app(engine, config=config)) as server, client(server) as http:
        for headers, user in (({"x-tenant": "a"}, None), ({}, "a")):
            body = {**COMPLETION, "n": 2, **({"user": user} if user else {})}
            refused = http.post("/v1/completions", json=body, headers=headers)
            assert refused.status_code == 429
            assert "this tenant" in refused.json()["error"]["message"]


# --- deadlines


@pytest.mark.parametrize("how", ["field", "header"])
def test_a_passed_deadline_is_a_504_and_frees_everything(engine: Engine, server: LiveServer, how: str) -> None:
    body = {**LONG, **({"timeout": 0.2} if how == "field" else {})}
    headers = {"x-request-timeout": "0.2"} if how == "header" else {}
    with client(server) as http, hung(engine):
        began = time.monotonic()
        response = http.post("/v1/completions", json=body, headers=headers)
        assert 0.2 <= time.monotonic() - began < 5.0
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert "0.2 s" in response.json()["error"]["message"]
    assert wait_until(lambda: is_idle(engine))


def test_a_deadline_in_the_middle_of_a_stream_is_its_last_event(engine: Engine, server: LiveServer) -> None:
    with client(server) as http, http.stream("POST", "/v1/completions", json={**LONG, "stream": True, "timeout": 1.0}) as response:
        lines = response.iter_lines()
        next(lines)
        with hung(engine):
            last = [line for line in lines if line][-1]
    assert json.loads(last[6:])["error"]["code"] == "deadline_exceeded"
    assert wait_until(lambda: is_idle(engine))


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_deadline_that_is_none_is_refused(server: LiveServer, timeout: str) -> None:
    with client(server) as http:
        response = http.post("/v1/completions", json=COMPLETION, headers={"x-request-timeout": timeout})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "timeout"


# --- draining, in process; tests/serving/test_server.py sends the signal


def test_a_draining_server_is_not_ready_but_alive_and_finishes_what_it_began(engine: Engine) -> None:
    app = build_app(engine)
    streaming = {**LONG, "stream": True}
    with live_server(app) as server, client(server) as http, http.stream("POST", "/v1/completions", json=streaming) as response:
        lines = response.iter_lines()
        next(lines)
        server.loop.call_soon_threadsafe(app.state.served.lifecycle.begin_drain, 7.0)
        assert wait_until(lambda: httpx.get(f"{server.root}/health/ready", trust_env=False).status_code == 503)
        assert httpx.get(f"{server.root}/health", trust_env=False).status_code == 503
        assert httpx.get(f"{server.root}/health/live", trust_env=False).status_code == 200
        refused = httpx.post(f"{server.url}/completions", json=COMPLETION, trust_env=False)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
        assert refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["connection"] == "close"
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_what_cannot_be_waited_for_ends_with_an_error_event_and_not_with_a_cut_socket(engine: Engine) -> None:
    app = build_app(engine)
    with live_server(app) as server, client(server) as http, hung(engine):
        server.loop.call_soon_threadsafe(lambda: server.loop.call_later(0.3, app.state.served.lifecycle.cut))
        assert http.post("/v1/completions", json=LONG).status_code == 503
    app = build_app(engine)
    with live_server(app) as server, client(server) as http:
        with http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            with hung(engine):
                server.loop.call_soon_threadsafe(app.state.served.lifecycle.cut)
                last = [line for line in lines if line][-1]
        assert json.loads(last[6:])["error"]["code"] == "shutting_down"
    assert wait_until(lambda: is_idle(engine))


# --- health


def test_a_hang_turns_health_red_within_its_time_and_its_end_turns_it_green(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def status(path: str = "/health") -> int:
        return http.get(path).status_code

    with live_server(build_app(engine, config=ServerConfig(stall_timeout_s=0.5))) as server, client(server) as http:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            with hung(engine):
                time.sleep(0.6)
                assert status() == 200  # nobody waits for anything
                connection.sendall(long_request("/v1/completions", prompt="Hi"))
                began = time.monotonic()
                assert wait_until(lambda: status() == 503)
                assert 0.5 <= time.monotonic() - began < 5.0
                assert status("/health/live") == status("/health/ready") == 503
                assert "no token came" in http.get("/health").json()["status"]
                assert "go_on.wait" in caplog.text  # where it hangs
            assert wait_until(lambda: status() == 200)
        assert wait_until(lambda: is_idle(engine))


def test_an_engine_that_has_ended_is_not_healthy(tiny_folder: Path) -> None:
    engine = open_tiny(tiny_folder, EngineConfig())
    with live_server(build_app(engine)) as server, client(server) as http:
        assert http.get("/health/live").status_code == 200
        asyncio.run(engine.aclose())
        for path in ("/health", "/health/live", "/health/ready"):
            assert http.get(path).status_code == 503
        assert http.get("/health").json()["status"] == "the engine has ended"
        assert http.post("/v1/completions", json=COMPLETION).status_code == 500


# --- connections


def test_a_reader_that_reads_nothing_is_given_up_and_its_blocks_are_freed(engine: Engine) -> None:
    config = ServerConfig(send_timeout_s=0.3)
    with live_server(build_app(engine, config=config)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        # 20 alternatives for each of 480 tokens are megabytes, more than the sockets' buffers hold
        connection.sendall(
            long_request(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
                n=4,
                max_tokens=480,
                logprobs=True,
                top_logprobs=20,
            )
        )
        assert wait_until(lambda: engine.stats().running == 4)
        assert wait_until(lambda: is_idle(engine), seconds=60.0)
        with client(server) as http:
            assert wait_until(lambda: sample(http.get("/metrics").text, "tripod_num_requests_admitted") == 0)
            assert sample(http.get("/metrics").text, "tripod_num_aborted_requests_total") > 0


def test_a_body_that_does_not_come_is_a_408_and_holds_no_place(engine: Engine) -> None:
    config = ServerConfig(read_timeout_s=0.2)
    with live_server(build_app(engine, config=config)) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(long_request("/v1/completions", prompt="Hi")[:-5])
        connection.settimeout(10.0)
        answer = connection.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408")
        while connection.recv(10_000):
            pass  # and the connection is closed


def test_headers_that_do_not_come_end_the_connection(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tripod.serving.protocol.HEADERS_TIMEOUT_S", 0.2)
    with live_server(build_app(engine)) as server:
        for words in (b"", b"POST /v1/completions HTTP/1.1\r\nHos"):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(words)
                connection.settimeout(10.0)
                with suppress(ConnectionResetError):
                    assert connection.recv(100) == b""


def test_headers_without_an_end_are_refused_and_not_kept(engine: Engine) -> None:
    with live_server(build_app(engine)) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(10.0)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        with suppress(ConnectionError):  # it may be closed before all of it was sent
            for i in range(70):
                connection.sendall(b"x-%d: %s\r\n" % (i, b"y" * 1024))
        with suppress(ConnectionResetError):
            assert connection.recv(10_000).startswith(b"HTTP/1.1 400")


def test_a_refusal_leaves_a_connection_that_can_ask_again_and_a_clock_that_starts_again(engine: Engine) -> None:
    app = build_app(engine, config=ServerConfig(max_waiting_requests=1))
    admission = app.state.served.admission
    with live_server(app) as server, client(server) as http, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(10.0)
        ticket = admission.admit("", 65, 0.0, 0.0)  # all 64 places to run, and the one to wait
        head, _, body = long_request("/v1/completions", prompt="Hi").partition(b"\r\n\r\n")
        for _ in range(3):
            connection.sendall(head + b"\r\n\r\n")
            answer = b""
            while b'"overloaded"}}' not in answer:  # before the body has come
                answer += connection.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 429")
            time.sleep(0.3)
            connection.sendall(body)
        text = http.get("/metrics").text
        assert sample(text, "tripod_reject_time_seconds_count") == 3
        assert sample(text, "tripod_reject_time_seconds_sum") < 0.3, "the bytes of a refused body are no request that waits"
        admission.release(ticket, 0.0)
        connection.sendall(head + b"\r\n\r\n" + body)
        connection.settimeout(30.0)
        assert connection.recv(10).startswith(b"HTTP/1.1 2")
    assert wait_until(lambda: is_idle(engine))


def test_a_full_collection_of_garbage_does_not_walk_what_was_there_before_the_server(server: LiveServer) -> None:
    assert gc.get_freeze_count() > 100_000


# --- what an answer says of itself


def test_every_answer_says_how_it_was_made(server: LiveServer) -> None:
    keys = {"queue_s", "prefill_s", "decode_s", "tokenize_s", "total_s", "cached_tokens", "cache_miss", "step_ids", "batch_invariant"}
    with client(server) as http:
        began = time.monotonic()
        made = http.post("/v1/completions", json={**COMPLETION, "n": 2}).json()["tripod"]
        elapsed_s = time.monotonic() - began
        assert set(made) == keys
        steps: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + 5.0
        while made["step_ids"][-1] not in steps and time.monotonic() < deadline:  # a step is written down when its tokens are delivered
            steps = {step["id"]: step for step in http.get("/debug/steps").json()["steps"]}
        assert len(made["step_ids"]) == 6
        assert all(steps[step_id]["num_requests"] == 2 for step_id in made["step_ids"])
        assert 0.0 < made["queue_s"] + made["prefill_s"] + made["decode_s"] <= made["total_s"] <= elapsed_s
        for path, body in (
            ("/v1/completions", COMPLETION),
            ("/v1/chat/completions", {**COMPLETION, "messages": [{"role": "user", "content": "Hi"}]}),
        ):
            body = {key: value for key, value in body.items() if key != "prompt" or path == "/v1/completions"}
            *chunks, _ = [
                json.loads(frame) for frame in frames_of(http.post(path, json={**body, "n": 2, "stream": True})) if frame != "[DONE]"
            ] + [None]
            assert [set(chunk["tripod"]) for chunk in chunks if "tripod" in chunk] == [keys]
            assert "tripod" in chunks[-1]
