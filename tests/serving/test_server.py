"""The server as a process: it says when it is ready, why it cannot start, and it stops cleanly."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serving.tiny import NAME
from tripod.engine.engine import Engine
from tripod.errors import ConfigError
from tripod.serving.app import build_app
from tripod.serving.server import bind, serve

SCRIPT = """
import asyncio, sys
from tests.serving.tiny import open_tiny
from tripod.engine.engine import EngineConfig
from tripod.serving.app import build_app
from tripod.serving.server import bind, serve

async def main():
    listener = bind("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    async with open_tiny(sys.argv[1], EngineConfig()) as engine:
        await serve(build_app(engine), listener, drain_s=float(sys.argv[2]))
    print("stopped", flush=True)

asyncio.run(main())
"""


@contextmanager
def server_process(folder: Path, *, drain_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", SCRIPT.replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])"), str(folder), str(drain_s)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            deadline = time.monotonic() + 60.0
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, "not ready"
                    time.sleep(0.05)
            yield process, port
        finally:
            process.kill()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish_and_then_stops_cleanly(tiny_folder: Path, name: signal.Signals) -> None:
    with server_process(tiny_folder, drain_s=30.0) as (process, port):
        body = {"model": NAME, "prompt": "Hi", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, trust_env=False, timeout=30.0) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(name)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
        out, err = process.communicate(timeout=30.0)
        assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_what_is_not_finished_within_the_bound_ends_with_an_error_event(tiny_folder: Path) -> None:
    with server_process(tiny_folder, drain_s=0.0) as (process, port):
        url = f"http://127.0.0.1:{port}/v1/completions"
        body = {"model": NAME, "prompt": "Hi", "max_tokens": 500, "ignore_eos": True, "n": 32, "stream": True}
        with httpx.stream("POST", url, json=body, trust_env=False, timeout=30.0) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]  # and reading to the end raises nothing: the socket was not cut
        assert json.loads(last[6:])["error"]["code"] == "shutting_down"
        out, err = process.communicate(timeout=30.0)
        assert (process.returncode, out) == (0, "stopped\n")
        assert "1 requests were not finished after 0 s" in err


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is in use .*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 8000), ("192.0.2.1", 8000), ("127.0.0.1", 70_000)])
def test_an_address_that_cannot_be_served_is_refused(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="cannot serve on"):
        bind(host, port)


def test_ipv6_is_served_where_the_machine_has_it(engine: Engine) -> None:
    try:
        listener = bind("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 loopback on this machine")

    async def ask() -> int:
        task = asyncio.create_task(serve(build_app(engine), listener, drain_s=1.0))
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(10):
            port = listener.getsockname()[1]
            while True:
                try:
                    response = await http.get(f"http://[::1]:{port}/health")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return response.status_code

    assert asyncio.run(ask()) == 200


def test_nobody_can_connect_before_the_server_serves() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname(), timeout=5.0)


def test_there_must_be_something_to_serve() -> None:
    with pytest.raises(ConfigError, match="nothing to serve"):
        build_app(None)
