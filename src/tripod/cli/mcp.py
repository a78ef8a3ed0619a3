"""`tripod mcp`: an index and your own functions, as tools of the Model Context Protocol."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

mcp = typer.Typer(help="Offer tools to assistants that speak the Model Context Protocol.", no_args_is_help=True)


@mcp.command()
def serve(
    documents: Annotated[
        str | None, typer.Argument(metavar="[FOLDER|KB.DB|URL]", help="Offer search and answers from a folder, or from an index.")
    ] = None,
    tools: Annotated[
        list[str] | None,
        typer.Option("--tool", metavar="MODULE:NAME", help="Offer a function, a tool or an agent; may be given several times."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Let a model write the answers: a folder, run@stepN, or http://host/v1.")
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="Serve at http://HOST:PORT/mcp instead of standard input and output.")
    ] = None,
) -> None:
    """Serve until the client leaves (standard input and output), or until Ctrl-C (--http)."""
    import tripod

    tripod.run(_serve(documents, tools or [], model, http))


async def _serve(documents: str | None, names: list[str], model: str | None, http: str | None) -> None:
    from tripod.agents.mcp_server import index_tools, mcp_server, serve_stdio
    from tripod.chat.model import Model
    from tripod.cli.imported import imported
    from tripod.cli.open_index import open_index
    from tripod.errors import ConfigError

    tools: list[Any] = [imported(name) for name in names]
    if documents is None and not tools:
        raise ConfigError("there is nothing to offer; give a folder or an index, or --tool MODULE:NAME")
    async with AsyncExitStack() as opened:
        if documents is not None:
            index = await opened.enter_async_context(open_index(documents))
            tools += index_tools(index, await opened.enter_async_context(Model(model)) if model is not None else None)
        server = mcp_server(tools)
        await (serve_stdio(server) if http is None else _serve_http(server, http))


async def _serve_http(server: Server[Any], address: str) -> None:
    import uvicorn

    from tripod.cli.terminal import note
    from tripod.errors import ConfigError

    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"--http {address} has no port; give HOST:PORT, such as 127.0.0.1:8001")
    host = host or "127.0.0.1"
    note(f"serving tools at http://{host}:{port}/mcp")
    app = server.streamable_http_app(host=host)
    await uvicorn.Server(uvicorn.Config(app, host=host, port=int(port), log_level="warning")).serve()
