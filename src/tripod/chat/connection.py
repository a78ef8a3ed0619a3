"""Exchanges with a server over HTTP, with every failure in our family of errors."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import anyio
from pydantic import BaseModel, ValidationError

from tripod.chat.wire.openai_replies import ErrorBody, ErrorDetail, ModelList
from tripod.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    ModelTimeoutError,
    NotFoundError,
    OverloadedError,
    RequestError,
    TripodError,
)

if TYPE_CHECKING:
    import httpx

Body = TypeVar("Body", bound=BaseModel)

_CONNECT_S = 10.0
_REST_S = 1.0  # for the end of a stream, once all of its events have come


class Client:
    """Open connections to one server, and the name of the model that is asked there.

    Args:
        base_url: up to and including the version, such as "http://127.0.0.1:8000/v1".
        headers: sent with each request.
        model: the name that the server knows; None asks the server, and takes its only one.
        read_timeout_s: the longest silence between two pieces of an answer.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], *, model: str | None, read_timeout_s: float) -> None:
        import httpx

        self.base_url = base_url.rstrip("/")
        self._model = model
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(read_timeout_s, connect=_CONNECT_S),
                limits=httpx.Limits(max_connections=None),  # who is served when is the server's to decide
            )
        except UnicodeEncodeError as error:
            raise ConfigError("the API key holds a character that HTTP headers cannot carry; copy it again") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _model_name(self) -> str:
        """Errors as for `_request`.

        Raises:
            ConfigError: none was given, and the server has none, or several.
        """
        if self._model is None:
            async with self._request("GET", "/models") as response:
                names = [card.id for card in self._parse(ModelList, await response.aread()).data]
            if len(names) != 1:
                raise ConfigError(f"{self.base_url} has {len(names)} models ({', '.join(names)}); name one with model=...")
            [self._model] = names
        return self._model

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> AsyncIterator[httpx.Response]:
        """One exchange; leaving the block closes it.

        Raises:
            RequestError: the server refuses the request; OverloadedError, ContextLengthError and NotFoundError where it says so.
            EngineError: the server cannot be reached, or fails.
            ModelTimeoutError: it was silent for too long.
        """
        import httpx

        url = self.base_url + path
        try:
            async with self._client.stream(method, url, json=body) as response:
                if response.status_code != 200:
                    self._fail(response, await response.aread())
                yield response
        except httpx.ConnectError as error:
            raise EngineError(
                f"no server answers at {self.base_url} ({error}); start one there (tripod serve MODEL), or correct the address"
            ) from error
        except httpx.TimeoutException as error:
            raise ModelTimeoutError(f"{url} was silent for too long ({type(error).__name__})") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigError(f"{self.base_url!r} is no address of a server: {error}; give one like http://127.0.0.1:8000/v1") from error
        except httpx.HTTPError as error:
            raise EngineError(f"the connection to {url} broke: {error or type(error).__name__}") from error

    async def _read_out(self, events: AsyncIterator[str]) -> None:
        """Read what follows the last event, which is nothing: only then can the connection be used again."""
        import httpx

        with anyio.move_on_after(_REST_S), suppress(httpx.HTTPError):
            async for _ in events:
                pass

    def _parse(self, kind: type[Body], content: bytes | str) -> Body:
        """The body of an answer.

        Raises:
            EngineError: it is something else.
        """
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise EngineError(
                f"{self.base_url} answered with something that is not of the API: {place}: {first['msg']}; the address usually ends in /v1"
            ) from error

    def _broken(self, detail: ErrorDetail) -> TripodError:
        """The error that a server sends in the middle of a stream."""
        status = {"invalid_request_error": 400, "rate_limit_error": 429, "overloaded_error": 429}.get(detail.type or "", 500)
        return _error(status, f"{self.base_url} failed in the middle of its answer: {detail.message}", detail, None)

    def _fail(self, response: httpx.Response, content: bytes) -> NoReturn:
        try:
            detail = ErrorBody.model_validate_json(content).error
        except ValidationError:  # not a server of this API, or something in front of one
            detail = ErrorDetail(message=content[:500].decode("utf-8", "replace"))
        message = f"{response.request.url} answered {response.status_code}: {detail.message or response.reason_phrase}"
        raise _error(response.status_code, message, detail, response.headers.get("retry-after"))


def api_key_of(api_key: str | None, api_key_env: str | None) -> str | None:
    """The key itself, or what the named environment variable holds.

    Raises:
        ConfigError: both are given, or the variable is not set.
    """
    if api_key is not None and api_key_env is not None:
        raise ConfigError("api_key and api_key_env are both given; give one")
    if api_key_env is None:
        return api_key
    key = os.environ.get(api_key_env)
    if not key:
        raise ConfigError(f"the environment variable {api_key_env} is not set; put the API key there")
    return key


def _error(status: int, message: str, detail: ErrorDetail, retry_after: str | None) -> TripodError:
    if status in (429, 503, 529):  # 529 is Anthropic's word for overloaded
        return OverloadedError(message, retry_after_s=_seconds(retry_after))
    if status in (401, 403):
        return ConfigError(f"{message}; give a valid key with api_key or api_key_env")
    if status in (408, 504):
        return ModelTimeoutError(message)
    if status == 404:
        return NotFoundError(message, param=detail.param)
    if 400 <= status < 500:
        kind = ContextLengthError if detail.code == ContextLengthError.code else RequestError
        return kind(message, param=detail.param)
    return EngineError(message)


def _seconds(retry_after: str | None) -> float:
    """Retry-After is a number of seconds or a date (RFC 9110, 10.2.3); without a readable one, a second."""
    if retry_after is None:
        return 1.0
    with suppress(ValueError):
        seconds = float(retry_after)
        return max(0.0, seconds) if isfinite(seconds) else 1.0
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 1.0
