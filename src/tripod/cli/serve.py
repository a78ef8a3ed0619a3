"""`tripod serve`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tripod.cli.weights import ExpertCacheSize, KVCacheType, Weights, kv_dtype, weight_format

if TYPE_CHECKING:
    import socket

    from tripod.serving.auth import ApiKeys
    from tripod.serving.config import ServerConfig


_ENGINE_FLAGS = {  # what only a language model has -> as it is asked for; bounds of the server hold for both
    "kv_tokens": "--kv-tokens",
    "kv_bytes": "--kv-bytes",
    "weight_format": "--weights",
    "kv_cache_dtype": "--kv-cache-dtype",
    "expert_cache": "--expert-cache",
    "batch_invariant": "--batch-invariant",
    "log": "--log",
    "chat_template": "--chat-template",
    "tool_format": "--tool-format",
    "timeline": "--timeline",
}


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, run@stepN, org/name[@revision]; a language model or an encoder.")
    ],
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Which requests call it by, instead of MODEL.")] = None,
    embedder: Annotated[str | None, typer.Option("--embedder", metavar="E", help="An encoder for /v1/embeddings.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template", metavar="plain|FILE", help="For a model without a chat template, or instead of its own: a Jinja file."
        ),
    ] = None,
    app: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="NAME=MODULE:OBJECT", help="An agent, a chat model or a function of a prompt, beside MODEL."),
    ] = None,
    tool_format: Annotated[
        str | None, typer.Option("--tool-format", metavar="NAME", help="How the model writes tool calls, if not as its template shows.")
    ] = None,
    kv_tokens: Annotated[int | None, typer.Option("--kv-tokens", min=1, help="Size of the key/value pool in tokens.")] = None,
    kv_bytes: Annotated[int | None, typer.Option("--kv-bytes", min=1, help="Size of the key/value pool in bytes, instead.")] = None,
    weights: Weights = None,
    kv_cache_dtype: KVCacheType = None,
    expert_cache: ExpertCacheSize = None,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="Bitwise the same answer whatever else is computed with it.")
    ] = False,
    log: Annotated[Path | None, typer.Option("--log", metavar="FILE", help="Write a replay log there; see `tripod replay`.")] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Say what the start was spent on.")] = False,
    max_num_requests: Annotated[int, typer.Option("--max-num-requests", min=1, help="Running at once.")] = 64,
    max_waiting_requests: Annotated[int, typer.Option("--max-waiting-requests", min=1, help="Queued; more are refused with 429.")] = 512,
    max_waiting_tokens: Annotated[int, typer.Option("--max-waiting-tokens", min=1, help="Of queued prompts, estimated.")] = 2_000_000,
    max_tenant_requests: Annotated[int | None, typer.Option("--max-tenant-requests", min=1, help="Of one tenant, at once.")] = None,
    stall_timeout: Annotated[
        float, typer.Option("--stall-timeout", metavar="SECONDS", help="/health is 503 when something runs and no step ended for so long.")
    ] = 30.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0.0, metavar="SECONDS", help="What SIGTERM leaves to requests that were let in.")
    ] = 30.0,
    grace: Annotated[
        float, typer.Option("--grace", min=0.0, metavar="SECONDS", help="The port stays open at least so long after readiness went.")
    ] = 0.0,
    api_key: Annotated[
        list[str] | None, typer.Option("--api-key", metavar="[NAME ]KEY", help="Ask for it; may be repeated. NAME is the tenant.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="KEY or NAME KEY in each line; others cannot see it in `ps`.")
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1, metavar="BYTES", help="A larger request is refused.")] = 32 * 2**20,
) -> None:
    """Serve a model to any OpenAI client: chat, completions, responses, embeddings; and to Anthropic's: /v1/messages.

    The environment variable TRIPOD_API_KEYS holds API keys, too: KEY or NAME KEY, separated by commas.
    """
    import asyncio
    import os

    from tripod.errors import MissingExtraError

    try:
        from tripod.serving.auth import ApiKeys
        from tripod.serving.config import ServerConfig
        from tripod.serving.server import bind
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve", "tripod serve") from error

    keys = ApiKeys.read([*(api_key or ()), *os.environ.get("TRIPOD_API_KEYS", "").split(",")], api_key_file)
    config = ServerConfig(
        max_body_bytes=max_body,
        max_waiting_requests=max_waiting_requests,
        max_waiting_tokens=max_waiting_tokens,
        max_tenant_requests=max_tenant_requests,
        stall_timeout_s=stall_timeout,
    )
    with bind(host, port) as listener:  # taken before anything slow is loaded: a port in use is said at once
        asyncio.run(
            _serve(
                model,
                host,
                listener,
                name=name or model,
                embedder=embedder,
                chat_template=chat_template,
                tool_format=tool_format,
                apps=dict(map(_app, app or ())),
                engine_options={
                    "kv_tokens": kv_tokens,
                    "kv_bytes": kv_bytes,
                    "weight_format": weight_format(weights),
                    "kv_cache_dtype": kv_dtype(kv_cache_dtype),
                    "expert_cache": expert_cache,
                    "batch_invariant": batch_invariant,
                    "log": log,
                    "max_num_requests": max_num_requests,
                },
                shows_timeline=timeline,
                config=config,
                api_keys=keys,
                drain_s=drain,
                grace_s=grace,
            )
        )


async def _serve(
    model: str,
    host: str,
    listener: socket.socket,
    *,
    name: str,
    embedder: str | None,
    chat_template: str | None,
    tool_format: str | None,
    apps: Mapping[str, Any],
    engine_options: Mapping[str, Any],
    shows_timeline: bool,
    config: ServerConfig,
    api_keys: ApiKeys,
    drain_s: float,
    grace_s: float,
) -> None:
    from contextlib import AsyncExitStack

    from tripod.chat.render import template_file
    from tripod.cli.terminal import note
    from tripod.errors import ConfigError, MissingExtraError

    try:
        from tripod.engine.encode import Encoder
        from tripod.engine.engine import Engine, EngineConfig
        from tripod.engine.timeline import Timeline
        from tripod.models.locate import locate
        from tripod.serving.app import build_app
        from tripod.serving.server import serve as serve_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "serve", "tripod serve") from error

    port = listener.getsockname()[1]
    own_template = template_file(chat_template)
    note(f"loading {model}")
    if embedder is None and is_encoder(locate(model)):
        given = {**engine_options, "chat_template": chat_template, "tool_format": tool_format, "timeline": shows_timeline}
        if useless := [flag for name, flag in _ENGINE_FLAGS.items() if given[name]]:
            raise ConfigError(f"{model} is an encoder, which has no {' and no '.join(useless)}; leave that out")
        app = build_app(None, embedder=Encoder.load(locate(model)), embedder_name=name, apps=apps, config=config, api_keys=api_keys)
        note(f"serving the encoder {model} at http://{host}:{port}/v1 (Ctrl-C ends)")
        await serve_app(app, listener, drain_s=drain_s, grace_s=grace_s)
        return
    embedder_path = locate(embedder) if embedder is not None else None  # before the model: a name that leads nowhere is said at once
    timeline = Timeline()
    async with AsyncExitStack() as resources:
        engine = await resources.enter_async_context(
            Engine.load(model, config=EngineConfig(**engine_options), name=name, chat_template=own_template, timeline=timeline)
        )
        note(engine.summary)
        if shows_timeline:
            note(f"start: {timeline}")
        encoder = Encoder.load(embedder_path) if embedder_path is not None else None
        app = build_app(
            engine,
            embedder=encoder,
            embedder_name=embedder or "",
            chat_template=None if own_template else chat_template,
            tool_format=tool_format,
            apps=apps,
            config=config,
            api_keys=api_keys,
        )
        note(f"serving {model} at http://{host}:{port}/v1 (Ctrl-C ends)")
        await serve_app(app, listener, drain_s=drain_s, grace_s=grace_s)


def _app(option: str) -> tuple[str, Any]:
    """What `--app NAME=MODULE:OBJECT` names."""
    from tripod.cli.imported import imported
    from tripod.errors import ConfigError

    name, equals, address = option.partition("=")
    if not (name and equals):
        raise ConfigError(f"--app {option} names no application; give NAME=MODULE:OBJECT, such as handbook=my_apps:handbook")
    return name, imported(address)


def is_encoder(path: Path) -> bool:
    """Whether a checkpoint embeds texts rather than writing them."""
    import json

    from tripod.models.architectures import ENCODERS

    config = path / "config.json"
    try:
        return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") in ENCODERS
    except (ValueError, AttributeError):
        return False  # loading it says what is wrong with it
