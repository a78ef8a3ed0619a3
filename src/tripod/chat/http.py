"""A client of any server that speaks the OpenAI chat API."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from pydantic import BaseModel, ValidationError

from tripod.chat.wire.openai import ChatBody
from tripod.chat.wire.openai_replies import ChatChunk, ChatCompletion, ErrorBody, ErrorDetail, ModelList, finish_reason
from tripod.chat.wire.sse import events
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
from tripod.messages import FinishReason, Message, Reply, Timings, Usage
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Finished

if TYPE_CHECKING:
    import httpx

Body = TypeVar("Body", bound=BaseModel)

_CONNECT_S = 10.0


class HttpChatModel:
    """A ChatModel behind HTTP. Cancelling a request closes its connection, which tells the server to stop.

    Token ids do not travel on this wire: `Reply.token_ids` is empty, and the ids inside log-probabilities are -1.

    Args:
        base_url: up to and including the version, such as "http://127.0.0.1:8000/v1".
        model: the name that the server knows; None asks the server, and takes its only one.
        api_key: sent as a bearer token.
        api_key_env: the environment variable that holds the key, where it should not stand in the code.
        read_timeout_s: the longest silence between two pieces of an answer.

    Raises:
        ConfigError: two keys are given, or the variable is not set.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        api_key_env: str | None = None,
        read_timeout_s: float = 600.0,
    ) -> None:
        import httpx

        self.base_url = base_url.rstrip("/")
        self._model = model
        headers = {}
        key = _key(api_key, api_key_env)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
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

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        """The whole answer. What the server said beyond the standard is in `Reply.extra`.

        Raises:
            RequestError: the server refuses the request; OverloadedError, ContextLengthError and NotFoundError where it says so.
            EngineError: the server cannot be reached, or fails.
            ModelTimeoutError: it was silent for too long.
        """
        start_s = time.monotonic()
        body = await self._body(prompt, sampling, stream=False)
        async with self._request("POST", "/chat/completions", body) as response:
            completion = self._parse(ChatCompletion, await response.aread())
        if not completion.choices:
            raise EngineError(f"{self.base_url} answered without a choice")
        choice = completion.choices[0]
        extra: dict[str, Any] = {**(completion.model_extra or {}), **(choice.message.model_extra or {})}
        return Reply(
            message=Message("assistant", choice.message.content or choice.message.refusal or ""),
            finish_reason=finish_reason(choice.finish_reason),
            usage=completion.usage.to_usage() if completion.usage is not None else Usage(),
            timings=Timings(decode_s=time.monotonic() - start_s),
            model=completion.model or body.model,
            logprobs=choice.logprobs.to_logprobs() if choice.logprobs is not None else (),
            extra={name: value for name, value in extra.items() if value is not None},
        )

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The answer as it comes; errors as for `complete`. A stream that breaks off is an error, never a short answer."""
        start_s = time.monotonic()
        first_s: float | None = None
        reason: FinishReason | None = None
        usage = Usage()
        body = await self._body(prompt, sampling, stream=True)
        model = body.model
        async with self._request("POST", "/chat/completions", body) as response:
            async for data in events(response.aiter_bytes()):
                if data == "[DONE]":
                    break
                chunk = self._chunk(data)
                model = chunk.model or model
                if chunk.usage is not None:
                    usage = chunk.usage.to_usage()
                for choice in chunk.choices:
                    text = choice.delta.content or choice.delta.refusal or ""
                    logprobs = choice.logprobs.to_logprobs() if choice.logprobs is not None else ()
                    if text or logprobs:
                        first_s = first_s or time.monotonic()
                        yield Delta(text=text, logprobs=logprobs)
                    if choice.finish_reason is not None:
                        reason = finish_reason(choice.finish_reason)
        if reason is None:
            raise EngineError(f"{self.base_url} ended its stream before the answer was finished; its log may tell why")
        end_s = time.monotonic()
        first_s = first_s or end_s
        timings = Timings(prefill_s=first_s - start_s, decode_s=end_s - first_s)
        yield Finished(finish_reason=reason, usage=usage, timings=timings, model=model)

    async def _body(self, prompt: Prompt, sampling: SamplingParams, *, stream: bool) -> ChatBody:
        return ChatBody.of(prompt.messages, sampling, model=await self._model_name(), stream=stream)

    async def _model_name(self) -> str:
        if self._model is None:
            async with self._request("GET", "/models") as response:
                names = [card.id for card in self._parse(ModelList, await response.aread()).data]
            if len(names) != 1:
                raise ConfigError(f"{self.base_url} has {len(names)} models ({', '.join(names)}); name one with model=...")
            self._model = names[0]
        return self._model

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: ChatBody | None = None) -> AsyncIterator[httpx.Response]:
        """One exchange, with every failure in our family of errors."""
        import httpx

        url = self.base_url + path
        try:
            async with self._client.stream(method, url, json=None if body is None else body.to_json()) as response:
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

    def _fail(self, response: httpx.Response, content: bytes) -> NoReturn:
        try:
            detail = ErrorBody.model_validate_json(content).error
        except ValidationError:  # not a server of this API, or something in front of one
            detail = ErrorDetail(message=content[:500].decode("utf-8", "replace"))
        message = f"{response.request.url} answered {response.status_code}: {detail.message or response.reason_phrase}"
        raise _error(response.status_code, message, detail, response.headers.get("retry-after"))

    def _chunk(self, data: str) -> ChatChunk:
        chunk = self._parse(_ChunkOrError, data)
        if chunk.error is not None:
            status = {"invalid_request_error": 400, "rate_limit_error": 429}.get(chunk.error.type or "", 500)
            raise _error(status, f"{self.base_url} failed in the middle of its answer: {chunk.error.message}", chunk.error, None)
        return chunk

    def _parse(self, kind: type[Body], content: bytes | str) -> Body:
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise EngineError(
                f"{self.base_url} answered with something that is not of the OpenAI API: {place}: {first['msg']}; "
                "the address usually ends in /v1"
            ) from error


class _ChunkOrError(ChatChunk):
    error: ErrorDetail | None = None


def _key(api_key: str | None, api_key_env: str | None) -> str | None:
    if api_key is not None and api_key_env is not None:
        raise ConfigError("api_key and api_key_env are both given; give one")
    if api_key_env is None:
        return api_key
    key = os.environ.get(api_key_env)
    if not key:
        raise ConfigError(f"the environment variable {api_key_env} is not set; put the API key there")
    return key


def _error(status: int, message: str, detail: ErrorDetail, retry_after: str | None) -> TripodError:
    if status == 429:
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
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 1.0
