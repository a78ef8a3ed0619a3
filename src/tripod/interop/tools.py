"""A tool of another library as ours, and ours as a plain call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_core import to_json

from tripod.agents.context import Context
from tripod.messages import Content, ToolSpec

if TYPE_CHECKING:
    from tripod.protocols import Tool, ToolContext

TIMEOUT_S = 60.0
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class ForeignTool:
    """A tool that another library carries out. It runs on asyncio, as those libraries do."""

    spec: ToolSpec
    function: Callable[[dict[str, Any]], Awaitable[Any]]
    timeout_s: float | None

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Content:
        """
        Raises:
            TimeoutError: it took longer than `timeout_s`.
        """
        with anyio.fail_after(self.timeout_s):
            result = await self.function(dict(arguments))
        return result if isinstance(result, str) else to_json(result, fallback=str).decode()


def foreign_tool(
    name: str,
    description: str,
    parameters: Mapping[str, Any],
    function: Callable[[dict[str, Any]], Awaitable[Any]],
    timeout_s: float | None,
) -> ForeignTool:
    """A tool under a name that every server takes."""
    return ForeignTool(ToolSpec(_UNNAMEABLE.sub("_", name)[:_MAX_NAME], description, parameters), function, timeout_s)


def caller(tool: Tool, deps: Any) -> Callable[..., Coroutine[Any, Any, str]]:
    """A tool as a function of its arguments. Of a file that it returns only the name is told."""

    async def call(**arguments: Any) -> str:
        content = await tool.call(arguments, Context(deps))
        return content if isinstance(content, str) else "\n".join(str(piece) for piece in content)

    return call
