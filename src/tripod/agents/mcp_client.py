"""The tools of any server of the Model Context Protocol, as tools."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from tripod.errors import EngineError, MissingExtraError, ToolError
from tripod.messages import Content, File, ToolSpec

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import ContentBlock

    from tripod.protocols import ToolContext

_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool of an MCP server."""

    client: Client
    name: str  # as the server calls it
    spec: ToolSpec
    timeout_s: float | None

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Content:
        """
        Raises:
            ToolError: the tool says that it failed, or the server that it cannot be called so.
            TimeoutError: it took longer than `timeout_s`.
        """
        from mcp.shared.exceptions import MCPError

        try:
            with anyio.fail_after(self.timeout_s):
                result = await self.client.call_tool(self.name, dict(arguments))
        except MCPError as error:
            raise ToolError(f"the server of {self.name} refused the call: {error}") from error
        pieces = [_piece(block) for block in result.content]
        if result.is_error:
            told = "\n".join(piece for piece in pieces if isinstance(piece, str))
            raise ToolError(told.removeprefix("Error: ") or f"{self.name} failed")  # the caller says again that it is one
        texts = [piece for piece in pieces if isinstance(piece, str)]
        return "\n".join(texts) if len(texts) == len(pieces) else tuple(pieces)


@asynccontextmanager
async def mcp_tools(
    server: str | Sequence[str] | Any,
    *,
    prefix: str = "",
    timeout_s: float | None = 60.0,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[McpTool, ...]]:
    """The tools of a server, while the block runs.

    Args:
        server: its URL, such as "http://127.0.0.1:8000/mcp"; the command that starts it, such as ["python", "server.py"], which talks over
            its standard input and output; or anything else that the `mcp` package can connect to.
        prefix: begins the names, so that the tools of two servers can stand side by side.
        timeout_s: how long a call may take; None for as long as it likes.
        env: environment variables for the command, beside a few harmless ones.

    Raises:
        EngineError: the server cannot be reached, or does not speak the protocol.
    """
    try:
        from mcp import Client, MCPError, StdioServerParameters
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "mcp", "mcp", "the tools of an MCP server") from error
    target: Any = server
    if isinstance(server, Sequence) and not isinstance(server, str):
        target = StdioServerParameters(command=server[0], args=list(server[1:]), env=dict(env) if env is not None else None)
    client = Client(target)
    try:
        await client.__aenter__()
    except (OSError, MCPError, ExceptionGroup) as error:
        shown = server if isinstance(server, str) else " ".join(server) if isinstance(server, Sequence) else type(server).__name__
        raise EngineError(f"no MCP server answers at {shown}: {_first(error)}") from error
    try:
        yield tuple([tool async for tool in _listed(client, prefix, timeout_s)])
    except Exception:
        await client.__aexit__(None, None, None)  # told of the error, it would raise it again inside of a group
        raise
    except BaseException as error:
        await client.__aexit__(type(error), error, error.__traceback__)
        raise
    else:
        await client.__aexit__(None, None, None)


async def _listed(client: Client, prefix: str, timeout_s: float | None) -> AsyncIterator[McpTool]:
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            name = _UNNAMEABLE.sub("_", prefix + tool.name)[:_MAX_NAME]
            yield McpTool(client, tool.name, ToolSpec(name, tool.description or tool.title or "", tool.input_schema), timeout_s)
        if page.next_cursor is None:
            return
        cursor = page.next_cursor


def _piece(block: ContentBlock) -> str | File:
    match block.type:
        case "text":
            return block.text
        case "image" | "audio":
            return File(media_type=block.mime_type, data=b64decode(block.data))
        case "resource_link":
            return f"{block.title or block.name}: {block.uri}"
        case "resource":
            resource = block.resource
            if hasattr(resource, "text"):
                return str(resource.text)
            return File(media_type=resource.mime_type or "application/octet-stream", data=b64decode(resource.blob), name=str(resource.uri))


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
