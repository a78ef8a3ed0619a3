"""Errors in the shape that OpenAI clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from tripod.chat.wire.anthropic import AnthropicError, AnthropicErrorBody
from tripod.chat.wire.openai_replies import ErrorBody, ErrorDetail
from tripod.errors import DeadlineError, ModelTimeoutError, NotFoundError, OverloadedError, RequestError, TripodError

_log = logging.getLogger(__name__)


class UnknownModelError(NotFoundError):
    """The request names a model that this server does not have."""

    code = "model_not_found"


class BodyTooLargeError(RequestError):
    """The body has more bytes than the server reads."""

    status = 413
    code = "request_too_large"


class ReadTimeoutError(RequestError):
    """The client did not send its request in the time that the server gives."""

    status = 408
    code = "request_timeout"


class UnauthorizedError(RequestError):
    """No API key, or one that this server does not know."""

    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("this server needs an API key that it knows; send the header 'Authorization: Bearer KEY'")


class ShuttingDownError(OverloadedError):
    """The server drains: ask again later, or another one."""

    status = 503
    code = "shutting_down"


class SlowReaderError(TripodError):
    """A client does not take what it asked for; keeping all of it would fill the memory."""


def error_body(error: Exception) -> ErrorBody:
    """The same body for a response of its own and for an event in the middle of a stream. What we did not foresee is logged, not shown."""
    match error:
        case ShuttingDownError():
            return _body(str(error), "server_error", None, error.code)
        case DeadlineError():
            return _body(str(error), "timeout_error", "timeout", error.code)
        case OverloadedError():
            return _body(str(error), "rate_limit_error", error.param, error.code)
        case RequestError():
            return _body(str(error), "invalid_request_error", error.param, None if error.code == RequestError.code else error.code)
        case _:
            _log.error("a request failed", exc_info=error)
            return _body(f"{type(error).__name__}: the server failed on this request; its log has the cause", "server_error", None, None)


def _body(message: str, kind: str, param: str | None, code: str | None) -> ErrorBody:
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))


def error_status(error: Exception) -> int:
    match error:
        case RequestError():
            return error.status
        case ModelTimeoutError():
            return 504
        case _:
            return 500


def anthropic_error(body: ErrorBody) -> AnthropicErrorBody:
    """The same error in the words of Anthropic's API."""
    kind = _ANTHROPIC.get(str(body.error.code)) or _ANTHROPIC.get(str(body.error.type), str(body.error.type))
    return AnthropicErrorBody(type="error", error=AnthropicError(type=kind, message=body.error.message))


_ANTHROPIC = {  # our code or type -> its type
    "invalid_api_key": "authentication_error",
    "model_not_found": "not_found_error",
    "not_found": "not_found_error",
    "request_too_large": "request_too_large",
    "shutting_down": "overloaded_error",
    "server_error": "api_error",
}


def error_response(error: Exception, path: str) -> JSONResponse:
    """`path` is that of the request, because APIs differ in the shape of their errors."""
    headers = {}
    match error:
        case OverloadedError():
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        case UnauthorizedError():
            headers["WWW-Authenticate"] = "Bearer"
        case ReadTimeoutError() | BodyTooLargeError():
            headers["Connection"] = "close"  # the rest of the body will not be read
    return JSONResponse(_shaped(error_body(error), path), status_code=error_status(error), headers=headers)


def _shaped(body: ErrorBody, path: str) -> dict[str, Any]:
    return (anthropic_error(body) if path.startswith("/v1/messages") else body).to_json()


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Whatever an endpoint raised, as a response."""
    request.scope["tripod.visit"].error = error
    return error_response(error, request.url.path)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """An unknown path or a wrong method, which the router found."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            message, code = f"there is nothing at {request.url.path}; /openapi.json lists what is", "not_found"
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message, code = f"{request.method} is not allowed on {request.url.path}; use {allowed}", "method_not_allowed"
        case _:
            message, code = error.detail, "http_error"
    body = _shaped(_body(message, "invalid_request_error", None, code), request.url.path)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
