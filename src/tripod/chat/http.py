"""A client of any server that speaks the OpenAI chat API."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from tripod.chat.connection import Client, api_key_of
from tripod.chat.wire.openai import ChatBody
from tripod.chat.wire.openai_replies import ChatChunk, ChatCompletion, ErrorDetail, finish_reason
from tripod.chat.wire.sse import events
from tripod.errors import EngineError, RequestError
from tripod.messages import File, FinishReason, Reply, Timings, Usage
from tripod.prompts import Prompt
from tripod.sampling import SamplingParams
from tripod.trace import Delta, Event, Finished

if TYPE_CHECKING:
    import httpx

_NOTHING = Delta()


class HttpChatModel(Client):
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
        key = api_key_of(api_key, api_key_env)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        super().__init__(base_url, headers, model=model, read_timeout_s=read_timeout_s)
        self._limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # as which an answer's limit is told

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        """The whole answer. What the server said beyond the standard is in `Reply.extra`.

        Raises:
            RequestError: the server refuses the request; OverloadedError, ContextLengthError and NotFoundError where it says so.
            EngineError: the server cannot be reached, or fails.
            ModelTimeoutError: it was silent for too long.
        """
        start_s = time.monotonic()
        name = await self._model_name()
        async with self._asked(prompt, sampling, name, stream=False) as response:
            completion = self._parse(ChatCompletion, await response.aread())
        if not completion.choices:
            raise EngineError(f"{self.base_url} answered without a choice")
        choice = completion.choices[0]
        extra: dict[str, Any] = {**(completion.model_extra or {}), **(choice.message.model_extra or {})}
        return Reply(
            message=choice.message.to_message(),
            finish_reason=finish_reason(choice.finish_reason),
            usage=completion.usage.to_usage() if completion.usage is not None else Usage(),
            timings=Timings(decode_s=time.monotonic() - start_s),
            model=completion.model or name,
            logprobs=choice.logprobs.to_logprobs() if choice.logprobs is not None else (),
            extra={name: value for name, value in extra.items() if value is not None},
        )

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The answer as it comes; errors as for `complete`. A stream that breaks off is an error, never a short answer."""
        start_s = time.monotonic()
        first_s: float | None = None
        reason: FinishReason | None = None
        usage = Usage()
        model = await self._model_name()
        async with self._asked(prompt, sampling, model, stream=True) as response:
            frames = events(response.aiter_bytes())
            async for data in frames:
                if data == "[DONE]":
                    break
                chunk = self._chunk(data)
                model = chunk.model or model
                if chunk.usage is not None:
                    usage = chunk.usage.to_usage()
                for choice in chunk.choices:
                    logprobs = choice.logprobs.to_logprobs() if choice.logprobs is not None else ()
                    delta = choice.delta.to_delta(logprobs)
                    if delta != _NOTHING:
                        first_s = first_s or time.monotonic()
                        yield delta
                    if choice.finish_reason is not None:
                        reason = finish_reason(choice.finish_reason)
            await self._read_out(frames)
        if reason is None:
            raise EngineError(f"{self.base_url} ended its stream before the answer was finished; its log may tell why")
        end_s = time.monotonic()
        first_s = first_s or end_s
        timings = Timings(prefill_s=first_s - start_s, decode_s=end_s - first_s)
        yield Finished(finish_reason=reason, usage=usage, timings=timings, model=model)

    @asynccontextmanager
    async def _asked(self, prompt: Prompt, sampling: SamplingParams, model: str, *, stream: bool) -> AsyncIterator[httpx.Response]:
        """The response. OpenAI's newer models refuse `max_tokens` and name its successor, which most other servers do not know."""
        body = _request(prompt, sampling, model, stream=stream)
        async with AsyncExitStack() as opened:
            try:
                response = await opened.enter_async_context(self._request("POST", "/chat/completions", self._limited(body)))
            except RequestError as error:
                if self._limit == "max_completion_tokens" or "max_tokens" not in body or "max_completion_tokens" not in str(error):
                    raise
                self._limit = "max_completion_tokens"
                response = await opened.enter_async_context(self._request("POST", "/chat/completions", self._limited(body)))
            yield response

    def _limited(self, body: dict[str, Any]) -> dict[str, Any]:
        return {self._limit if name == "max_tokens" else name: value for name, value in body.items()}

    def _chunk(self, data: str) -> ChatChunk:
        chunk = self._parse(_ChunkOrError, data)
        if chunk.error is not None:
            raise self._broken(chunk.error)
        return chunk


class _ChunkOrError(ChatChunk):
    error: ErrorDetail | None = None


def _request(prompt: Prompt, sampling: SamplingParams, model: str, *, stream: bool) -> dict[str, Any]:
    messages = prompt.messages
    body = ChatBody.of(messages, sampling, model=model, stream=stream).to_json()
    for message, sent in zip(messages, body["messages"], strict=True):
        if not isinstance(message.content, str):
            sent["content"] = [_content(piece) for piece in message.content]
    if prompt.tools:
        body["tools"] = [tool.to_json() for tool in prompt.tools]
        named = prompt.tool_choice not in ("auto", "none", "required")
        body["tool_choice"] = {"type": "function", "function": {"name": prompt.tool_choice}} if named else prompt.tool_choice
    return body


def _content(piece: str | File) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    if piece.is_image:
        return {"type": "image_url", "image_url": {"url": piece.data_url}}
    if not piece.data:
        raise RequestError(f"the OpenAI API takes other files than images by their bytes only; read {piece.url} first", param="messages")
    return {"type": "file", "file": {"filename": piece.name or "file", "file_data": piece.data_url}}
