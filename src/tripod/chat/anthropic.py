"""A client of any server that speaks Anthropic's Messages API.

Source: the reference of the API, version 2023-06-01 (messages, streaming, tool use, extended thinking).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from tripod.chat.connection import Client, api_key_of
from tripod.chat.wire.openai_replies import ErrorDetail
from tripod.chat.wire.sse import events
from tripod.errors import EngineError, RequestError
from tripod.messages import File, FinishReason, Message, Reply, Timings, Usage
from tripod.prompts import Prompt
from tripod.sampling import Grammar, SamplingParams
from tripod.trace import Delta, Event, Finished, ToolCallDelta, folded

_VERSION = "2023-06-01"
_MAX_TOKENS = 4096  # the API has no "as many as the context holds"
_ANSWER = "answer"  # the tool by which an answer is held to a schema
_CARRIED = ("temperature", "top_p", "top_k", "max_tokens", "stop", "grammar")


class AnthropicChatModel(Client):
    """A ChatModel behind the Messages API. Cancelling a request closes its connection, which tells the server to stop.

    A JSON schema is handed over as the only tool that may be called, and its arguments come back as the text. Token ids and
    log-probabilities do not travel on this wire.

    Args:
        base_url: up to and including the version, such as "https://api.anthropic.com/v1".
        model: the name that the server knows; None asks the server, and takes its only one.
        api_key: sent as x-api-key.
        api_key_env: the environment variable that holds the key, where it should not stand in the code.
        thinking_tokens: how much the model may think before it answers, where nothing says what it must write; None for not at all.
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
        thinking_tokens: int | None = None,
        read_timeout_s: float = 600.0,
    ) -> None:
        key = api_key_of(api_key, api_key_env)
        headers = {"anthropic-version": _VERSION} | ({} if key is None else {"x-api-key": key})
        super().__init__(base_url, headers, model=model, read_timeout_s=read_timeout_s)
        self._thinking_tokens = thinking_tokens

    async def complete(self, prompt: Prompt, sampling: SamplingParams) -> Reply:
        """The whole answer.

        Raises:
            RequestError: the server refuses the request, or this wire cannot carry what is asked.
            EngineError: the server cannot be reached, or fails.
            ModelTimeoutError: it was silent for too long.
        """
        start_s = time.monotonic()
        body = await self._body(prompt, sampling)
        async with self._request("POST", "/messages", body) as response:
            reply = self._parse(_Reply, await response.aread())
        deltas = [_begun(i, block, is_whole=True, grammar=sampling.grammar) for i, block in enumerate(reply.content)]
        timings = Timings(decode_s=time.monotonic() - start_s)
        return folded([*deltas, _finished(reply.stop_reason, reply.usage, timings, reply.model or body["model"])])

    async def stream(self, prompt: Prompt, sampling: SamplingParams) -> AsyncGenerator[Event, None]:
        """The answer as it comes; errors as for `complete`. A stream that breaks off is an error, never a short answer."""
        start_s = time.monotonic()
        first_s: float | None = None
        body = {**await self._body(prompt, sampling), "stream": True}
        model, usage, reason = str(body["model"]), _Usage(), None
        async with self._request("POST", "/messages", body) as response:
            frames = events(response.aiter_bytes())
            async for data in frames:
                event = self._parse(_Event, data)
                delta = Delta()
                match event.type:
                    case "message_start" if event.message is not None:
                        model, usage = event.message.model or model, event.message.usage
                    case "content_block_start" if event.content_block is not None:
                        delta = _begun(event.index, event.content_block, is_whole=False, grammar=sampling.grammar)
                    case "content_block_delta":
                        delta = _continued(event.index, event.delta, sampling.grammar)
                    case "message_delta":
                        reason = event.delta.stop_reason or reason
                        usage = usage.updated(event.usage)
                    case "error":
                        raise self._broken(event.error or ErrorDetail())
                    case "message_stop":
                        break
                if delta != Delta():
                    first_s = first_s or time.monotonic()
                    yield delta
            await self._read_out(frames)
        if reason is None:
            raise EngineError(f"{self.base_url} ended its stream before the answer was finished; its log may tell why")
        end_s = time.monotonic()
        first_s = first_s or end_s
        yield _finished(reason, usage, Timings(prefill_s=first_s - start_s, decode_s=end_s - first_s), model)

    async def _body(self, prompt: Prompt, sampling: SamplingParams) -> dict[str, Any]:
        plain = SamplingParams()
        for name in SamplingParams.__dataclass_fields__:
            if name not in _CARRIED and getattr(sampling, name) != getattr(plain, name):
                raise RequestError(f"{name}={getattr(sampling, name)!r} cannot be asked of the Messages API; leave it out", param=name)
        messages = prompt.messages
        opening = "\n\n".join(message.text for message in messages if message.role == "system")
        body: dict[str, Any] = {
            "model": await self._model_name(),
            "max_tokens": sampling.max_tokens or _MAX_TOKENS,
            "messages": _turns([message for message in messages if message.role != "system"]),
        }
        if opening:
            body["system"] = opening
        if sampling.temperature != plain.temperature:
            body["temperature"] = sampling.temperature
        if sampling.top_p != plain.top_p:
            body["top_p"] = sampling.top_p
        if sampling.top_k != plain.top_k:
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body["stop_sequences"] = list(sampling.stop)
        tools = [{"name": t.name, "description": t.description, "input_schema": dict(t.parameters)} for t in prompt.tools]
        choice: dict[str, str] = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}.get(
            prompt.tool_choice, {"type": "tool", "name": prompt.tool_choice}
        )
        if sampling.grammar is not None:
            if tools or sampling.grammar.kind != "json_schema":
                raise RequestError("the Messages API can hold an answer to a JSON schema, without other tools beside it", param="grammar")
            tools = [{"name": _ANSWER, "description": "Give the answer.", "input_schema": sampling.grammar.schema}]
            choice = {"type": "tool", "name": _ANSWER}
        if tools:
            body |= {"tools": tools, "tool_choice": choice}
        if self._thinking_tokens is not None and choice["type"] in (
            "auto",
            "none",
        ):  # the API lets no model think before a call it must make
            body["thinking"] = {"type": "enabled", "budget_tokens": self._thinking_tokens}
            body["max_tokens"] += self._thinking_tokens
        return body


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns of one role stand together, and results of tools in a turn of the user."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += _blocks(message)
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    pieces = (message.content,) if isinstance(message.content, str) else message.content
    blocks = [_file(piece) if isinstance(piece, File) else {"type": "text", "text": piece} for piece in pieces if piece]
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": blocks}]
    if message.signature:  # of unsigned reasoning the server cannot know whose it is, and takes none
        blocks.insert(0, {"type": "thinking", "thinking": message.reasoning, "signature": message.signature})
    uses = [{"type": "tool_use", "id": c.id, "name": c.name, "input": _arguments(c.arguments)} for c in message.tool_calls]
    return [*blocks, *uses]


def _file(file: File) -> dict[str, Any]:
    source: dict[str, Any] = {"type": "url", "url": file.url}
    if file.data:
        source = {"type": "base64", "media_type": file.media_type, "data": file.data_url.partition(",")[2]}
    return {"type": "image" if file.is_image else "document", "source": source}


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {"text": text}  # a model may have written what is no JSON; the wire takes only objects


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Usage(_Wire):
    input_tokens: int | None = None  # those that were neither read from the cache nor written to it
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens: int | None = None

    def updated(self, later: _Usage | None) -> _Usage:
        """The counts of a stream are running totals, and come in several events."""
        return self if later is None else self.model_copy(update=later.model_dump(exclude_none=True))

    def to_usage(self) -> Usage:
        cached = self.cache_read_input_tokens or 0
        prompt = (self.input_tokens or 0) + cached + (self.cache_creation_input_tokens or 0)
        return Usage(prompt_tokens=prompt, completion_tokens=self.output_tokens or 0, cached_tokens=cached)


class _Block(_Wire):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class _Reply(_Wire):
    content: list[_Block] = []
    model: str = ""
    stop_reason: str | None = None
    usage: _Usage = _Usage()


class _Piece(_Wire):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(_Wire):
    type: str
    index: int = 0
    message: _Reply | None = None
    content_block: _Block | None = None
    delta: _Piece = _Piece()
    usage: _Usage | None = None
    error: ErrorDetail | None = None


def _begun(index: int, block: _Block, *, is_whole: bool, grammar: Grammar | None) -> Delta:
    """The beginning of a block; outside a stream it is all of it."""
    match block.type:
        case "text":
            return Delta(text=block.text)
        case "thinking":
            return Delta(reasoning=block.thinking, signature=block.signature)
        case "tool_use":
            arguments = json.dumps(block.input, ensure_ascii=False) if is_whole else ""  # in a stream it begins empty
            if grammar is not None:
                return Delta(text=arguments)
            return Delta(tool_calls=(ToolCallDelta(index=index, id=block.id, name=block.name, arguments=arguments),))
        case _:
            return Delta()  # what the server's own tools did


def _continued(index: int, piece: _Piece, grammar: Grammar | None) -> Delta:
    match piece.type:
        case "text_delta":
            return Delta(text=piece.text)
        case "thinking_delta":
            return Delta(reasoning=piece.thinking)
        case "signature_delta":
            return Delta(signature=piece.signature)
        case "input_json_delta" if grammar is not None:
            return Delta(text=piece.partial_json)
        case "input_json_delta":
            return Delta(tool_calls=(ToolCallDelta(index=index, arguments=piece.partial_json),))
        case _:
            return Delta()


def _finished(reason: str | None, usage: _Usage, timings: Timings, model: str) -> Finished:
    reasons: dict[str | None, FinishReason] = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "abort"}
    return Finished(finish_reason=reasons.get(reason, "stop"), usage=usage.to_usage(), timings=timings, model=model)
