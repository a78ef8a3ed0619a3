"""The agents of other libraries on the task of `benchmarks.agents`. Run by that program, in an environment without Tripod.

python benchmarks/agent_peers.py pydantic-ai|langchain|haystack [SECONDS]
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

REPEATS = 5
Run = Callable[[], Awaitable[None]]


async def milliseconds(run: Run, parallel: int, seconds: float) -> list[float]:
    """Milliseconds of one run, `parallel` at a time, in each of five repetitions."""
    found = []
    for repeat in range(REPEATS + 1):
        num_runs = 0
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < (seconds if repeat else seconds / 4):
            if parallel == 1:
                await run()
            else:
                await asyncio.gather(*(run() for _ in range(parallel)))
            num_runs += parallel
        found.append((time.perf_counter() - start_s) / num_runs * 1e3)
    return found[1:]  # the first warms up


def import_seconds(python: str, statement: str) -> list[float]:
    """Seconds of an import in a fresh interpreter, five times."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return [float(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(REPEATS + 1)][1:]


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def pydantic_ai() -> tuple[Run, str]:
    from pydantic_ai import Agent  # type: ignore[import-not-found]
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart  # type: ignore[import-not-found]
    from pydantic_ai.models.function import FunctionModel  # type: ignore[import-not-found]

    def script(messages: Any, _: Any) -> Any:
        if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
            return ModelResponse(parts=[TextPart("3")])
        return ModelResponse(parts=[ToolCallPart("add", {"a": 1, "b": 2})])

    agent = Agent(FunctionModel(script), tools=[add])

    async def run() -> None:
        result = await agent.run("1+2?")
        assert result.output == "3"
        assert len(result.all_messages()) == 4

    return run, "from pydantic_ai import Agent"


def langchain() -> tuple[Run, str]:
    from langchain.agents import create_agent  # type: ignore[import-not-found]
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Script(BaseChatModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
            call: Any = {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}
            said = AIMessage("3") if isinstance(messages[-1], ToolMessage) else AIMessage("", tool_calls=[call])
            return ChatResult(generations=[ChatGeneration(message=said)])

        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
            return self._generate(messages)

        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

        @property
        def _llm_type(self) -> str:
            return "script"

    agent = create_agent(Script(), [add])

    async def run() -> None:
        result = await agent.ainvoke({"messages": [{"role": "user", "content": "1+2?"}]})
        assert result["messages"][-1].content == "3"
        assert len(result["messages"]) == 4

    return run, "from langchain.agents import create_agent"


def haystack() -> tuple[Run, str]:
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    from haystack.components.agents import Agent
    from haystack.components.generators.chat import MockChatGenerator
    from haystack.dataclasses import ChatMessage, ToolCall
    from haystack.tools import create_tool_from_function

    def script(messages: Any) -> Any:
        if messages[-1].tool_call_results:
            return "3"
        return ChatMessage.from_assistant(tool_calls=[ToolCall("add", {"a": 1, "b": 2}, id="c1")])

    agent = Agent(chat_generator=MockChatGenerator(response_fn=script), tools=[create_tool_from_function(add)])
    agent.warm_up()

    async def run() -> None:
        result = await agent.run_async(messages=[ChatMessage.from_user("1+2?")])
        assert result["last_message"].text == "3"
        assert len(result["messages"]) == 4

    return run, "from haystack.components.agents import Agent"


def main() -> None:
    run, statement = {"pydantic-ai": pydantic_ai, "langchain": langchain, "haystack": haystack}[sys.argv[1]]()
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    rows = {f"ms at c={parallel}": asyncio.run(milliseconds(run, parallel, seconds)) for parallel in (1, 50)}
    print(json.dumps({**rows, "import s": import_seconds(sys.executable, statement)}))


if __name__ == "__main__":
    main()
