"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from tripod.chat.wire.openai import ChatBody
from tripod.chat.wire.openai_replies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    ErrorBody,
    FunctionReply,
    Made,
    ReplyMessage,
    ToolCallReply,
)
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.chat.wire.sse import DONE, ChunkTemplate, frame
from tripod.messages import Message, Usage
from tripod.serving.answers import Body, respond
from tripod.serving.asking import conversation
from tripod.serving.generation import Choice
from tripod.trace import Delta, Event, Finished, ToolCallDelta, folded


async def chat_completions(request: Request) -> Response:
    """Answers a conversation, `n` times."""
    body, source, choices = await conversation(request, ChatBody)
    writer = ChatWriter(
        model=source.name,
        choices=[_Written() for _ in choices],
        wants_logprobs=bool(body.logprobs),
        include_usage=body.include_usage,
    )
    return await respond(request, source, choices, writer, num_choices=body.num_choices, stream=bool(body.stream))


@dataclass(slots=True)
class _Written:
    """What was sent of one choice."""

    events: list[Event] = field(default_factory=list)
    has_calls: bool = False
    is_begun: bool = False


@dataclass(slots=True, kw_only=True)
class ChatWriter:
    """Writes `chat.completion` bodies, and `chat.completion.chunk` ones."""

    model: str
    choices: list[_Written]
    wants_logprobs: bool
    include_usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _templates: dict[int, ChunkTemplate] = field(default_factory=dict)

    def take(self, choice: Choice, event: Event) -> None:
        self._push(choice, event)

    def _push(self, choice: Choice, event: Event) -> ChunkChoice | str | None:
        """The next piece; its text where there is nothing else in it; None while there is nothing to send."""
        written = self.choices[choice.index]
        written.events.append(event)
        delta = ReplyMessage()
        logprobs: ChatLogprobs | None = None
        reason: str | None = None
        if not written.is_begun:
            delta.role = "assistant"
            delta.content = None if isinstance(event, Delta) and (event.tool_calls or event.reasoning) else ""
        match event:
            case Delta():
                is_plain = not (event.tool_calls or event.reasoning)
                if written.is_begun and is_plain and not (event.text or event.logprobs):
                    return None
                if written.is_begun and is_plain and not self.wants_logprobs:
                    return event.text
                if event.text or is_plain:
                    delta.content = event.text
                if event.reasoning:
                    delta.reasoning_content = event.reasoning
                if event.tool_calls:
                    written.has_calls = True
                    delta.tool_calls = [_call_piece(piece) for piece in event.tool_calls]
                logprobs = ChatLogprobs.of(event.logprobs) if self.wants_logprobs else None
            case Finished():
                reason = finish_word(event, has_calls=written.has_calls)
        written.is_begun = True
        return ChunkChoice(index=choice.index, delta=delta, logprobs=logprobs, finish_reason=reason)

    def chunk(self, choice: Choice, event: Event, made: Made | None) -> bytes | None:
        piece = self._push(choice, event)
        match piece:
            case None:
                return None
            case str():
                assert made is None, "only the last event of a choice has it, and that is no text"
                return self._template(choice.index).frame(piece)
            case ChunkChoice():
                return frame(self._chunk([piece], None, made))

    def _template(self, index: int) -> ChunkTemplate:
        """Of chunks with text alone."""
        template = self._templates.get(index)
        if template is None:
            template = self._templates[index] = ChunkTemplate(
                lambda text: self._chunk(
                    [ChunkChoice(index=index, delta=ReplyMessage(content=text), logprobs=None, finish_reason=None)], None, None
                )
            )
        return template

    def end(self, usage: Usage) -> bytes:
        return frame(self._chunk([], usage, None)) + DONE if self.include_usage else DONE

    def failed(self, error: ErrorBody) -> bytes:
        return frame(error.to_json())

    def whole(self, usage: Usage, made: Made) -> Body:
        choices = []
        for index, written in enumerate(self.choices):
            reply = folded(written.events)
            finished = written.events[-1]
            assert isinstance(finished, Finished)
            choices.append(
                ChatChoice(
                    index=index,
                    message=_message(reply.message),
                    logprobs=ChatLogprobs.of(reply.logprobs) if self.wants_logprobs else None,
                    finish_reason=finish_word(finished, has_calls=bool(reply.tool_calls)),
                )
            )
        return ChatCompletion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=UsageBody.of(usage),
            tripod=made,
        ).to_json()

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None, made: Made | None) -> Body:
        body = ChatChunk(id=self.id, object="chat.completion.chunk", created=self.created, model=self.model, choices=choices)
        if self.include_usage:  # with it, every chunk has the key
            body.usage = UsageBody.of(usage) if usage is not None else None
        if made is not None:
            body.tripod = made
        return body.to_json()


def _message(message: Message) -> ReplyMessage:
    body = ReplyMessage(role="assistant", content=message.text if message.text or not message.tool_calls else None, refusal=None)
    if message.reasoning:
        body.reasoning_content = message.reasoning
    if message.tool_calls:
        body.tool_calls = [
            ToolCallReply(id=call.id, type="function", function=FunctionReply(name=call.name, arguments=call.arguments))
            for call in message.tool_calls
        ]
    return body


def _call_piece(piece: ToolCallDelta) -> ToolCallReply:
    if piece.name:
        function = FunctionReply(name=piece.name, arguments=piece.arguments)
        return ToolCallReply(index=piece.index, id=piece.id, type="function", function=function)
    return ToolCallReply(index=piece.index, function=FunctionReply(arguments=piece.arguments))


def finish_word(finished: Finished, *, has_calls: bool) -> str:
    """The OpenAI API's word for why an answer ended."""
    return "tool_calls" if has_calls and finished.finish_reason == "stop" else finished.finish_reason
