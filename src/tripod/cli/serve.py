"""`tripod serve`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
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
        str | None,
        typer.Option(
            "--chat-template", metavar="plain|FILE", help="For a model without a chat template, or instead of its own: a Jinja file."
        ),
    ] = None,
    kv_tokens: Annotated[int | None, typer.Option("--kv-tokens", min=1, help="Size of the key/value pool in tokens.")] = None,
) -> None:
    """Serve a model to any OpenAI client: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /health, /metrics."""
    import asyncio

    from tripod.errors import MissingExtraError

    try:
        from tripod.serving.server import bind
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve", "tripod serve") from error

    with bind(host, port) as listener:  # taken before anything slow is loaded: a port in use is said at once
        asyncio.run(_serve(model, host, listener, embedder=embedder, chat_template=chat_template, kv_tokens=kv_tokens))


async def _serve(
    model: str, host: str, listener: socket.socket, *, embedder: str | None, chat_template: str | None, kv_tokens: int | None
) -> None:
    from contextlib import AsyncExitStack

    from tripod.chat.render import template_file
    from tripod.cli.terminal import note
    from tripod.errors import MissingExtraError

    try:
        from tripod.engine.encode import Encoder
        from tripod.engine.engine import Engine, EngineConfig
        from tripod.models.locate import locate
        from tripod.serving.app import build_app
        from tripod.serving.server import serve as serve_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "serve", "tripod serve") from error

    port = listener.getsockname()[1]
    own_template = template_file(chat_template)
    note(f"loading {model}")
    if embedder is None and is_encoder(locate(model)):
        app = build_app(None, embedder=Encoder.load(locate(model)), embedder_name=model)
        note(f"serving the encoder {model} at http://{host}:{port}/v1 (Ctrl-C ends)")
        await serve_app(app, listener)
        return
    async with AsyncExitStack() as resources:
        engine = await resources.enter_async_context(
            Engine.load(model, config=EngineConfig(kv_tokens=kv_tokens), chat_template=own_template)
        )
        encoder = Encoder.load(locate(embedder)) if embedder is not None else None
        app = build_app(engine, embedder=encoder, embedder_name=embedder or "", chat_template=None if own_template else chat_template)
        note(f"serving {model} at http://{host}:{port}/v1 (Ctrl-C ends)")
        await serve_app(app, listener)


def is_encoder(path: Path) -> bool:
    """Whether a checkpoint embeds texts rather than writing them."""
    import json

    from tripod.models.architectures import ENCODERS

    config = path / "config.json"
    try:
        return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") in ENCODERS
    except (ValueError, AttributeError):
        return False  # loading it says what is wrong with it
