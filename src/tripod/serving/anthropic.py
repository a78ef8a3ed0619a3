"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients speak."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tripod.chat.asked import ask_engine
from tripod.chat.wire.anthropic import CountBody, MessageReply, MessagesBody, ReplyBlock, TokenCount, Usage
from tripod.chat.wire.openai_replies import ErrorBody, Made
from tripod.chat.wire.sse import named_frame
from tripod.errors import ConfigError, RequestError
from tripod.messages import Usage as UsageValue
from tripod.sampling import SamplingParams
from tripod.serving.answers import Body, respond
from tripod.serving.asking import conversation, num_characters
from tripod.serving.blocks import Block, Blocks, Change
from tripod.serving.bodies import read_body
from tripod.serving.errors import anthropic_error
from tripod.serving.generation import Choice
from tripod.serving.served import timed
from tripod.serving.visit import Visit
from tripod.trace import Delta, Event, Finished


async def messages(request: Request) -> Response:
    """Answers a conversation."""
    body, source, choices = await conversation(request, MessagesBody)
    prompt = choices[0].prompt
    writer = MessageWriter(model=source.name, num_prompt_tokens=len(prompt) if isinstance(prompt, tuple) else 0)
    return await respond(request, source, choices, writer, num_choices=1, stream=bool(body.stream))


async def count_tokens(request: Request) -> Response:
    """The tokens of a conversation with its tools."""
    visit = Visit.of(request)
    served = visit.served
    body = await read_body(request, CountBody, served.config)
    engine = served.engine_for(body.model)
    prompt = body.to_prompt()
    engine.check_length(num_characters(prompt))
    try:
        asked = await timed(
            visit,
            num_characters(prompt),
            ask_engine,
            prompt,
            SamplingParams(),
            engine.tokenizer,
            chat_template=served.chat_template,
            tool_format_name=served.tool_format,
        )
    except ConfigError as error:
        raise RequestError(str(error), param="messages") from error
    return JSONResponse(TokenCount(input_tokens=len(asked.ids)).to_json())


@dataclass(slots=True, kw_only=True)
class MessageWriter:
    """Writes a message, and the events of a streamed one."""

    model: str
    num_prompt_tokens: int
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _blocks: Blocks = field(default_factory=Blocks)
    _finished: Finished | None = None
    _is_begun: bool = False

    def take(self, choice: Choice, event: Event) -> None:
        for _ in self._changes(event):
            pass

    def chunk(self, choice: Choice, event: Event, made: Made | None) -> bytes | None:
        frames = [self._frame(change) for change in self._changes(event)]
        if not self._is_begun:
            self._is_begun = True
            usage = UsageValue(prompt_tokens=self.num_prompt_tokens)
            frames.insert(0, named_frame({"type": "message_start", "message": self._message([], None, usage).to_json()}))
        return b"".join(frames) or None

    def end(self, usage: UsageValue) -> bytes:
        reason, stop = self._reason()
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return named_frame({"type": "message_delta", "delta": delta, "usage": Usage.of(usage).to_json()}) + named_frame(
            {"type": "message_stop"}
        )

    def failed(self, error: ErrorBody) -> bytes:
        return named_frame(anthropic_error(error).to_json())

    def whole(self, usage: UsageValue, made: Made) -> Body:
        body = self._message([_reply(block) for block in self._blocks.blocks], self._reason(), usage)
        body.tripod = made
        return body.to_json()

    def _changes(self, event: Event) -> Iterable[Change]:
        if isinstance(event, Delta):
            return self._blocks.push(event)
        self._finished = event
        return self._blocks.close()

    def _reason(self) -> tuple[Any, str | None]:
        assert self._finished is not None
        if self._finished.finish_reason == "length":
            return "max_tokens", None
        if self._finished.stop is not None:
            return "stop_sequence", self._finished.stop
        return "tool_use" if any(block.kind == "call" for block in self._blocks.blocks) else "end_turn", None

    def _message(self, content: list[ReplyBlock], reason: tuple[Any, str | None] | None, usage: UsageValue) -> MessageReply:
        return MessageReply(
            id=self.id,
            type="message",
            role="assistant",
            model=self.model,
            content=content,
            stop_reason=reason[0] if reason else None,
            stop_sequence=reason[1] if reason else None,
            stop_details=None,
            usage=Usage.of(usage),
        )

    def _frame(self, change: Change) -> bytes:
        what, block, added = change
        body: dict[str, Any] = {"type": f"content_block_{_WORDS[what]}", "index": block.index}
        if what == "opened":
            body["content_block"] = _reply(Block(block.kind, block.index, block.call_id, block.name)).to_json()
        elif what == "grown":
            kind, name = _DELTAS[block.kind]
            body["delta"] = {"type": kind, name: added}
        return named_frame(body)


_WORDS = {"opened": "start", "grown": "delta", "closed": "stop"}
_DELTAS = {"text": ("text_delta", "text"), "reasoning": ("thinking_delta", "thinking"), "call": ("input_json_delta", "partial_json")}


def _reply(block: Block) -> ReplyBlock:
    match block.kind:
        case "text":
            return ReplyBlock(type="text", text=block.text)
        case "reasoning":
            return ReplyBlock(type="thinking", thinking=block.text, signature="")
        case "call":
            # Arguments that max_tokens cut are read as far as they came, as Anthropic's client reads those of a stream.
            arguments = from_json(block.text, allow_partial=True) if block.text else {}
            return ReplyBlock(type="tool_use", id=block.call_id, name=block.name, input=arguments)
