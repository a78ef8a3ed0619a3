"""`tripod serve`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import socket


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, run@stepN, org/name[@revision]; a language model or an encoder.")
    ],
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    embedder: Annotated[str | None, typer.Option("--embedder", metavar="E", help="An encoder for /v1/embeddings.")] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", metavar="F", help="'plain' for a model that comes without a chat template.")
    ] = None,
    kv_tokens: Annotated[int | None, typer.Option("--kv-tokens", min=1, help="Size of the key/value pool in tokens.")] = None,
) -> None:
    """Serve a model to any OpenAI client: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /health, /metrics."""
    import asyncio

    from tripod.cli.terminal import note
    from tripod.errors import MissingExtraError

    try:
        from tripod.serving.server import bind
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve", "tripod serve") from error

    listener = bind(host, port)
    shown = f"http://{host}:{listener.getsockname()[1]}"
    note(f"loading {model} for {shown}")
    asyncio.run(_serve(model, listener, shown, embedder=embedder, chat_template=chat_template, kv_tokens=kv_tokens))


async def _serve(
    model: str, listener: socket.socket, shown: str, *, embedder: str | None, chat_template: str | None, kv_tokens: int | None
) -> None:
    raise NotImplementedError
