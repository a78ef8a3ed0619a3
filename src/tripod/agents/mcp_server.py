"""Our tools for others: a server of the Model Context Protocol over any tools, an index among them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tripod import __version__
from tripod.agents.calling import call_tool
from tripod.agents.context import Context
from tripod.agents.tool import FunctionTool, as_tool, repeated_name, tool
from tripod.errors import ConfigError, MissingExtraError
from tripod.messages import File, ToolCall
from tripod.rag.ask import ask as ask_index

if TYPE_CHECKING:
    import mcp_types
    from mcp.server.lowlevel import Server

    from tripod.protocols import ChatModel
    from tripod.retrieval.index import Index

_MAX_RESULT_CHARS = 200_000


def mcp_server(tools: Iterable[Any], *, name: str = "tripod", instructions: str = "", deps: object = None) -> Server[Any]:
    """A server that offers these tools; `serve_stdio` and its own `streamable_http_app()` let others reach it.

    Args:
        tools: functions, tools and agents.
        deps: what the tools find in their `Context`.

    Raises:
        ConfigError: two tools have one name.
    """
    try:
        import mcp_types
        from mcp.server.lowlevel import Server
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "mcp", "mcp", "serving tools by MCP") from error
    made = [as_tool(given) for given in tools]
    if (twice := repeated_name(one.spec for one in made)) is not None:
        raise ConfigError(f"two tools are called {twice!r}, and a client could reach but one; rename one, by tool(name=...) say")
    offered = {one.spec.name: one for one in made}
    listed = [mcp_types.Tool(name=one.spec.name, description=one.spec.description, input_schema=dict(one.spec.parameters)) for one in made]

    async def list_tools(_: Any, params: mcp_types.PaginatedRequestParams | None) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(tools=listed)

    async def call(_: Any, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        called = await call_tool(
            ToolCall("", params.name, ""), params.arguments or {}, context=Context(deps), tools=offered, limit=_MAX_RESULT_CHARS
        )
        content = called.message.content
        pieces = (content,) if isinstance(content, str) else content
        return mcp_types.CallToolResult(content=[_block(piece) for piece in pieces], is_error=called.is_failed)

    return Server(name, version=__version__, instructions=instructions or None, on_list_tools=list_tools, on_call_tool=call)


async def serve_stdio(server: Server[Any]) -> None:
    """Serve one client on standard input and output, until it leaves. Nothing else may print meanwhile."""
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read_stream, write_stream):
        await server.run(read_stream, write_stream, server.create_initialization_options())


def index_tools(index: Index, model: ChatModel | None = None) -> tuple[FunctionTool[..., Any], ...]:
    """Search in an index, and answers from it with their places; without a model the answers are quoted."""

    async def search(query: str, k: int = 6) -> list[dict[str, Any]]:
        """Search the documents. Returns passages with the place where they stand, the best first.

        Args:
            query: a question or some words.
            k: how many passages.
        """
        passages = await index.search(query, k=k)
        return [{"source": p.source, "section": p.section, "page": p.page, "line": p.line, "text": p.text} for p in passages]

    async def ask(question: str) -> str:
        """Answer a question from the documents, with citations; says so when they do not answer it.

        Args:
            question: a whole sentence.
        """
        answer = await ask_index(question, index, model=model)
        places = [f"[{citation.number}] {citation.place}" for citation in answer.citations]
        return "\n".join([answer.text, *dict.fromkeys(places)])

    return tool(search), tool(timeout_s=600.0)(ask)


def _block(piece: str | File) -> mcp_types.ContentBlock:
    import mcp_types

    if isinstance(piece, str):
        return mcp_types.TextContent(text=piece)
    if piece.url:
        return mcp_types.ResourceLink(name=piece.name or piece.url, uri=piece.url, mime_type=piece.media_type)
    data = b64encode(piece.data).decode()
    if piece.is_image:
        return mcp_types.ImageContent(data=data, mime_type=piece.media_type)
    if piece.media_type.startswith("audio/"):
        return mcp_types.AudioContent(data=data, mime_type=piece.media_type)
    uri = f"file:///{piece.name or 'file'}"
    return mcp_types.EmbeddedResource(resource=mcp_types.BlobResourceContents(uri=uri, blob=data, mime_type=piece.media_type))
