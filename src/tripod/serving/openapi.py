"""GET /openapi.json, made from the models that check the requests, so it cannot promise something else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import tripod
from tripod.chat.wire.openai import ChatBody, CompletionBody, EmbeddingBody
from tripod.chat.wire.openai_replies import ChatCompletion, Completion, EmbeddingList, ErrorBody, ModelList

_READ: Literal["validation"] = "validation"
_WRITTEN: Literal["serialization"] = "serialization"

_POSTS: dict[str, tuple[type[BaseModel], type[BaseModel], str]] = {
    "/v1/completions": (CompletionBody, Completion, "Continue one or more prompts"),
    "/v1/chat/completions": (ChatBody, ChatCompletion, "Answer a conversation"),
    "/v1/embeddings": (EmbeddingBody, EmbeddingList, "Embed one or more texts"),
}


def openapi() -> dict[str, Any]:
    """The document, as JSON values."""
    bodies = [body for body, _, _ in _POSTS.values()]
    replies: list[type[BaseModel]] = [*(reply for _, reply, _ in _POSTS.values()), ModelList, ErrorBody]
    references, definitions = models_json_schema(
        [*((body, _READ) for body in bodies), *((reply, _WRITTEN) for reply in replies)],
        ref_template="#/components/schemas/{model}",
    )
    error = {"description": "What is wrong, and with which field", "content": _json(references[ErrorBody, _WRITTEN])}
    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": _json(references[body, _READ])},
                "responses": {
                    "200": {
                        "description": "The answer; with stream=true, server-sent events",
                        "content": _json(references[reply, _WRITTEN]),
                    },
                    "4XX": error,
                    "5XX": error,
                },
            }
        }
        for path, (body, reply, summary) in _POSTS.items()
    }
    models = {"description": "The models of this server", "content": _json(references[ModelList, _WRITTEN])}
    paths["/v1/models"] = {"get": {"summary": "List the models", "responses": {"200": models}}}
    paths["/health"] = {"get": {"summary": "Whether the server answers", "responses": {"200": {"description": "It does"}}}}
    paths["/metrics"] = {"get": {"summary": "Prometheus metrics", "responses": {"200": {"description": "Text format"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tripod", "version": tripod.__version__},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
