"""GET /openapi.json, made from the models that check the requests, so it cannot promise something else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import tripod
from tripod.chat.wire.anthropic import AnthropicErrorBody, CountBody, MessageReply, MessagesBody, TokenCount
from tripod.chat.wire.apps import AppBody, AppReply
from tripod.chat.wire.openai import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from tripod.chat.wire.openai_replies import (
    ChatCompletion,
    Completion,
    Detokenized,
    EmbeddingList,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
    StepList,
    Tokens,
)
from tripod.chat.wire.responses import ResponseBody, ResponseReply

_READ: Literal["validation"] = "validation"
_WRITTEN: Literal["serialization"] = "serialization"

_POSTS: dict[str, tuple[type[BaseModel], type[BaseModel], str, bool]] = {  # body, reply, summary, whether it can stream
    "/v1/completions": (CompletionBody, Completion, "Continue one or more prompts", True),
    "/v1/chat/completions": (ChatBody, ChatCompletion, "Answer a conversation", True),
    "/v1/responses": (ResponseBody, ResponseReply, "Answer a conversation (the newer of OpenAI's APIs; nothing is stored)", True),
    "/v1/messages": (MessagesBody, MessageReply, "Answer a conversation (Anthropic's API)", True),
    "/v1/messages/count_tokens": (CountBody, TokenCount, "The number of tokens of a conversation with its tools", False),
    "/apps/{app}": (AppBody, AppReply, "Ask an application", True),
    "/v1/embeddings": (EmbeddingBody, EmbeddingList, "Embed one or more texts", False),
    "/tokenize": (TokenizeBody, Tokens, "The token ids of a prompt or a conversation", False),
    "/detokenize": (DetokenizeBody, Detokenized, "The text of token ids", False),
}
_GETS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/models": (ModelList, "List the models"),
    "/debug/steps": (StepList, "What the engine's last steps did, and where their time went"),
}
_EVENT = {  # of a stream, one by one
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a chunk as JSON, or [DONE]"}},
    "required": ["data"],
}
_PROBES: dict[str, str] = {
    "/health": "Whether requests are taken: alive, and not stopping",
    "/health/ready": "The same",
    "/health/live": "Whether what runs makes progress; if not, only a restart helps",
}
_POST_ERRORS = {
    "400": "A field is wrong; `param` names it",
    "401": "No API key, or one that is not known",
    "404": "No such model",
    "408": "The body did not come in time",
    "413": "The body is larger than this server reads",
    "429": "There is no place in the queue; ask again after Retry-After seconds",
    "500": "The server failed on this request",
    "503": "The server is stopping; ask again after Retry-After seconds",
    "504": "The answer was not finished within the request's own timeout",
}
_HEADERS = [
    {
        "name": "X-Request-Timeout",
        "in": "header",
        "required": False,
        "description": "Seconds for the whole answer, as the field `timeout`; the lesser counts",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "X-Tenant",
        "in": "header",
        "required": False,
        "description": "Among whom the queue is shared; where there are API keys, the key says it",
        "schema": {"type": "string"},
    },
]

_APP = {"name": "app", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _error_of(path: str) -> type[BaseModel]:
    return AnthropicErrorBody if path.startswith("/v1/messages") else ErrorBody


def openapi(*, needs_key: bool = False) -> dict[str, Any]:
    """The document, as JSON values."""
    bodies = [body for body, _, _, _ in _POSTS.values()]
    replies: list[type[BaseModel]] = [
        *(post[1] for post in _POSTS.values()),
        *(get[0] for get in _GETS.values()),
        ModelCard,
        Health,
        ErrorBody,
        AnthropicErrorBody,
    ]
    references, definitions = models_json_schema(
        [*((body, _READ) for body in bodies), *((reply, _WRITTEN) for reply in replies)],
        ref_template="#/components/schemas/{model}",
    )

    def answer(description: str, kind: type[BaseModel], *, streams: bool = False) -> dict[str, Any]:
        content = {"application/json": {"schema": references[kind, _WRITTEN]}}
        if streams:
            content["text/event-stream"] = {"schema": _EVENT}
        return {"description": description, "content": content}

    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": summary,
                "parameters": [*_HEADERS, _APP] if "{app}" in path else _HEADERS,
                "requestBody": {"required": True, "content": {"application/json": {"schema": references[body, _READ]}}},
                "responses": {
                    "200": answer("The answer; with stream=true, server-sent events" if streams else "The answer", reply, streams=streams),
                    **{status: answer(text, _error_of(path)) for status, text in _POST_ERRORS.items()},
                },
            }
        }
        for path, (body, reply, summary, streams) in _POSTS.items()
    }
    unauthorized = {"401": answer(_POST_ERRORS["401"], ErrorBody)}
    for path, (reply, summary) in _GETS.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": answer(summary, reply), **unauthorized}}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    responses = {"200": answer("The model", ModelCard), "404": answer(_POST_ERRORS["404"], ErrorBody), **unauthorized}
    paths["/v1/models/{model}"] = {"get": {"summary": "One model", "parameters": [name], "responses": responses}}
    for path, summary in _PROBES.items():
        responses = {"200": answer("Yes", Health), "503": answer("No; `status` says why", Health)}
        paths[path] = {"get": {"summary": summary, "responses": responses, "security": []}}
    text = {"description": "Text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": {"summary": "Prometheus metrics", "responses": {"200": text}, "security": []}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tripod", "version": tripod.__version__},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if needs_key else [],
    }
