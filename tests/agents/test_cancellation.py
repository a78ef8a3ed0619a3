"""A run that is cancelled at any await point leaves nothing behind: no task, no thread, no open stream; on asyncio and on trio."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.serving.live_server import live_server
from tripod.agents.agent import Agent
from tripod.agents.tool import tool
from tripod.chat.http import HttpChatModel
from tripod.chat.scripted import ScriptedModel
from tripod.messages import Reply, ToolCall
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Slow(ScriptedModel):
    """Gives way before each event, as a model behind a wire does."""

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        await checkpoint()
        reply = await super().complete(prompt, sampling)
        await checkpoint()
        return reply

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> Any:
        async with aclosing(super().stream(prompt, sampling)) as events:
            async for event in events:
                await checkpoint()
                yield event


class Stops:
    """Counts the times that control comes back to the loop, and cancels at the n-th."""

    def __init__(self, scope: anyio.CancelScope, n: int) -> None:
        self.scope, self.left = scope, n

    def __call__(self, wrapped: Any) -> Any:
        return _Counted(self, wrapped)


class _Counted:
    def __init__(self, stops: Stops, awaitable: Any) -> None:
        self.stops, self.awaitable = stops, awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.awaitable.__await__()
        sent: Any = None
        error: BaseException | None = None
        while True:
            try:
                wanted = steps.send(sent) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.stops.left -= 1
            if self.stops.left == 0:
                self.stops.scope.cancel()
            sent, error = None, None
            try:
                sent = yield wanted
            except BaseException as raised:
                error = raised


running = 0


@tool
async def waits(n: int) -> int:
    """Gives way a few times."""
    global running
    running += 1
    try:
        for _ in range(n):
            await checkpoint()
        return n
    finally:
        running -= 1


@tool
def works() -> str:
    """In a thread."""
    global running
    running += 1
    time.sleep(0.002)
    running -= 1
    return "worked"


CALLS = (ToolCall("1", "waits", '{"n": 3}'), ToolCall("2", "works", "{}"), ToolCall("3", "helper", '{"task": "count"}'))


def script() -> tuple[Slow, Slow]:
    inner = Slow([ToolCall("1", "waits", '{"n": 2}'), "two three"])
    return Slow([CALLS, ToolCall("4", "waits", '{"n": 1}'), "done at last"]), inner


async def one(n: int, way: str) -> bool:
    """Runs the agent and cancels it at its n-th stop; whether it was cancelled."""
    model, inner = script()
    agent = Agent(model, [waits, works, Agent(inner, [waits], name="helper")])
    before = _num_tasks()

    async def whole() -> str:
        if way == "complete":
            return (await agent("go")).value
        async with aclosing(agent.stream("go")) as events:
            return [event async for event in events][-1].value  # type: ignore[union-attr]

    with anyio.CancelScope() as scope:
        assert await Stops(scope, n)(whole()) == "done at last"
    assert (model.num_running, inner.num_running, running) == (0, 0, 0)
    assert _num_tasks() == before
    return scope.cancelled_caught


def _num_tasks() -> int:
    return anyio.get_running_tasks().__len__() if _is_asyncio() else _trio_tasks()


def _is_asyncio() -> bool:
    import sniffio

    return sniffio.current_async_library() == "asyncio"


def _trio_tasks() -> int:
    import trio

    return trio.lowlevel.current_statistics().tasks_living


@backends
@pytest.mark.parametrize("way", ["complete", "stream"])
def test_a_run_cancelled_at_any_await_point_leaves_nothing(backend: str, way: str) -> None:
    async def all_points() -> int:
        n = 1
        while await one(n, way):
            n += 1
        return n

    threads = threading.active_count()
    assert anyio.run(all_points, backend=backend) > 10
    assert threading.active_count() <= threads + 1  # trio keeps an idle worker for its next thread


@backends
def test_a_stream_left_early_stops_its_model(backend: str) -> None:
    async def leave() -> None:
        model, _ = script()
        async with aclosing(Agent(model, [waits, works]).stream("go")) as events:
            async for _ in events:
                break
        assert model.num_running == 0

    anyio.run(leave, backend=backend)


def test_a_cancelled_run_closes_its_connection_so_that_the_server_can_stop() -> None:
    arrived, left = threading.Event(), threading.Event()

    async def slow(request: Request) -> Response:
        arrived.set()
        while not await request.is_disconnected():
            await anyio.sleep(0.005)
        left.set()
        return Response()

    async def ready(_: Request) -> Response:
        return Response()

    async def cancel(url: str) -> None:
        async with HttpChatModel(url, model="m") as model:
            async with anyio.create_task_group() as group:
                group.start_soon(Agent(model, [waits]), "go")
                while not arrived.is_set():
                    await anyio.sleep(0.005)
                group.cancel_scope.cancel()
            assert await anyio.to_thread.run_sync(left.wait, 5.0)  # while the client is still open

    routes = [Route("/health", ready), Route("/v1/chat/completions", slow, methods=["POST"])]
    with live_server(Starlette(routes=routes)) as server:
        anyio.run(cancel, server.url)
