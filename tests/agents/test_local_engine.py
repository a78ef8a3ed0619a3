"""An agent on the real engine, with a model of random weights: every call is valid by its schema, and a cancelled run leaves no request."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from typing import Any, Literal

import anyio
import pytest

from tests.serving.tiny import open_tiny, write_tiny
from tripod.agents.agent import Agent
from tripod.agents.turns import Limits
from tripod.chat.local import LocalChatModel
from tripod.engine.engine import Engine, EngineConfig
from tripod.errors import AgentError
from tripod.sampling import SamplingParams
from tripod.trace import Span

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llguidance") is None, reason="llguidance is not installed")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_tiny(write_tiny(tmp_path_factory.mktemp("models") / "tiny", max_positions=8192), EngineConfig())
    yield engine
    anyio.run(engine.aclose)


async def paint(color: Literal["red", "green"], *, is_bright: bool) -> str:
    """Paint."""
    return f"{color} {is_bright}"


def agent(engine: Engine, seed: int) -> Agent[Literal["yes", "no"]]:
    sampling = SamplingParams(seed=seed, max_tokens=400)
    answer: Any = Literal["yes", "no"]
    return Agent(LocalChatModel(engine), [paint], returns=answer, sampling=sampling, limits=Limits(turns=3))


def spans(engine: Engine, seed: int) -> list[Span]:
    async def run() -> list[Span]:
        try:
            return list((await agent(engine, seed)("Paint, then say whether you did.")).trace[0].children)
        except AgentError as error:  # random weights may paint forever
            return list(error.run.spans)

    return anyio.run(run)


def test_a_model_that_was_never_trained_calls_tools_that_exist_with_arguments_that_fit(engine: Engine) -> None:
    found = [span for seed in range(4) for span in spans(engine, seed)]
    calls = [span for span in found if span.name == "tool"]
    replies = [span.attributes["reply"] for span in found if span.name == "model"]
    assert calls
    assert [span.attributes["error"] for span in calls if "error" in span.attributes] == []
    assert all(reply.tool_calls for reply in replies)
    assert {call.name for reply in replies for call in reply.tool_calls} == {"paint", "answer"}


def test_a_cancelled_run_leaves_no_request_in_the_engine(engine: Engine) -> None:
    async def cancelled_after(seconds: float) -> bool:
        with anyio.move_on_after(seconds) as scope:
            await agent(engine, 1)("Paint.")
        with anyio.fail_after(5.0):
            while engine.stats().running or engine.stats().waiting:
                await anyio.sleep(0.002)
        return scope.cancelled_caught

    start_s = time.monotonic()
    spans(engine, 1)
    whole_s = time.monotonic() - start_s
    were_cancelled = [anyio.run(cancelled_after, whole_s * share) for share in (0.0, 0.1, 0.3, 0.5, 0.7)]
    assert any(were_cancelled)
