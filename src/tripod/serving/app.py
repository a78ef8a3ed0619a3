"""The HTTP application: routes, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tripod.chat.render import check_chat_template
from tripod.chat.wire.openai_replies import ModelCard, ModelList, StepBody, StepList
from tripod.errors import ConfigError, TripodError
from tripod.serving.admission import Admission
from tripod.serving.anthropic import count_tokens, messages
from tripod.serving.app_calls import app_calls
from tripod.serving.apps import Answering, App
from tripod.serving.auth import ApiKeys
from tripod.serving.chat_completions import chat_completions
from tripod.serving.completions import completions
from tripod.serving.config import ServerConfig
from tripod.serving.connection import on_disconnect
from tripod.serving.embeddings import embeddings
from tripod.serving.errors import on_error, on_http_error
from tripod.serving.health import live, ready
from tripod.serving.metrics import Metrics
from tripod.serving.openapi import openapi
from tripod.serving.progress import Progress
from tripod.serving.responses import responses
from tripod.serving.served import Served, TextEncoder
from tripod.serving.tokenization import detokenize, tokenize
from tripod.serving.visit import Front
from tripod.text.tool_format import tool_format as find_tool_format

if TYPE_CHECKING:
    from tripod.engine.engine import Engine

_MAX_RUNNING_APPS = 64  # conversations at once where no engine says how many


def build_app(
    engine: Engine | None,
    *,
    embedder: TextEncoder | None = None,
    embedder_name: str = "embedder",
    apps: Mapping[str, Answering] | None = None,
    chat_template: str | None = None,
    tool_format: str | None = None,
    config: ServerConfig = ServerConfig(),
    api_keys: ApiKeys = ApiKeys(),
) -> Starlette:
    """An OpenAI-compatible application. It neither starts nor closes the engine.

    Args:
        engine: answers completions and conversations, whichever API they come by, under its own name.
        embedder: answers /v1/embeddings under `embedder_name`.
        apps: answer conversations under their names: each a ChatModel, or a function of the prompt (see `App`).
        chat_template: None for the template beside the model; "plain" for models that have none.
        tool_format: how the engine's model writes calls of tools; None for what its template shows.
        config: the bounds of the server.
        api_keys: who may ask; without any, everybody.

    Raises:
        ConfigError: there is nothing to serve, two have one name, or `chat_template` or `tool_format` is unknown.
    """
    if engine is None and embedder is None and not apps:
        raise ConfigError("there is nothing to serve; give an engine, an embedder or apps")
    check_chat_template(chat_template)
    find_tool_format(tool_format, None)
    admission = Admission(
        max_running=engine.config.max_num_requests if engine is not None else _MAX_RUNNING_APPS if apps else 1,
        max_waiting_requests=config.max_waiting_requests,
        max_waiting_tokens=config.max_waiting_tokens,
        tenant_share=config.tenant_share,
        max_tenant_requests=config.max_tenant_requests,
    )
    served = Served(
        engine=engine,
        encoder=embedder,
        encoder_name=embedder_name,
        apps={name: App(name, answer) for name, answer in (apps or {}).items()},
        chat_template=chat_template,
        tool_format=tool_format,
        config=config,
        api_keys=api_keys,
        metrics=Metrics(engine, admission),
        admission=admission,
        progress=Progress(engine, config.stall_timeout_s),
    )
    if len(set(served.names)) < len(served.names):
        raise ConfigError(f"two of what is served have one name: {', '.join(served.names)}; rename one")
    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
            Route("/v1/messages", messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/apps/{app:path}", app_calls, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
            Route("/health", ready),
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/metrics", metrics),
            Route("/debug/steps", steps),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/openapi.json", openapi_document),
        ],
        middleware=[Middleware(Front, served=served)],
        exception_handlers={TripodError: on_error, HTTPException: on_http_error, ClientDisconnect: on_disconnect, Exception: on_error},
    )
    app.state.served = served
    return app


async def models(request: Request) -> Response:
    """GET /v1/models."""
    served = Served.of(request)
    return JSONResponse(ModelList(object="list", data=[_card(served, name) for name in served.names]).to_json())


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    served = Served.of(request)
    name = request.path_params["model"]
    if name not in served.names:
        raise served.unknown(name)
    return JSONResponse(_card(served, name).to_json())


def _card(served: Served, name: str) -> ModelCard:
    card = ModelCard(id=name, object="model", created=served.created_s, owned_by="tripod")
    if served.engine is not None and name == served.engine.name:
        card.max_model_len = served.engine.max_context
    return card


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    metrics = Served.of(request).metrics
    text = await asyncio.to_thread(metrics.text)  # ten milliseconds, for which nobody else should wait
    return Response(text, headers={"content-type": metrics.content_type})


async def steps(request: Request) -> Response:
    """GET /debug/steps: what the engine's last steps did and where their time went, oldest first."""
    engine = Served.of(request).engine
    records = engine.recent_steps() if engine is not None else ()
    return JSONResponse(StepList(steps=[StepBody(**asdict(record), total_s=record.total_s) for record in records]).to_json())


async def openapi_document(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(openapi(needs_key=bool(Served.of(request).api_keys.digests)))
