"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from tripod.chat.render import prompt_ids
from tripod.chat.wire.openai import ChatBody
from tripod.chat.wire.openai_replies import ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChunkChoice, Made, ReplyMessage
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.chat.wire.sse import ChunkTemplate, frame
from tripod.errors import ConfigError, RequestError
from tripod.messages import TokenLogprob, Usage
from tripod.serving.answers import Body, respond
from tripod.serving.bodies import read_body
from tripod.serving.generation import Choice, choices_of
from tripod.serving.served import admit, check_grammar, timed
from tripod.serving.visit import Visit
from tripod.trace import Delta, Event, Finished


async def chat_completions(request: Request) -> Response:
    """Answers a conversation, `n` times."""
    visit = Visit.of(request)
    served = visit.served
    body = await read_body(request, ChatBody, served.config)
    engine = served.engine_for(body.model)
    sampling = body.to_sampling()
    messages = body.to_messages()
    num_characters = sum(len(message.text) for message in messages)
    engine.check_length(num_characters)
    admit(visit, body, [num_characters])
    await check_grammar(engine, sampling, body.grammar_field)
    try:
        ids = await timed(visit, num_characters, prompt_ids, messages, engine.tokenizer, served.chat_template)
    except ConfigError as error:  # whoever started the server can repair it; whoever asks can use the other endpoint
        raise RequestError(f"{error}; or POST to /v1/completions", param="messages") from error
    writer = ChatWriter(
        model=engine.name,
        choices=[_Written() for _ in range(body.num_choices)],
        wants_logprobs=bool(body.logprobs),
        include_usage=body.include_usage,
    )
    return await respond(
        request,
        engine,
        choices_of([ids], sampling, body.num_choices),
        writer,
        num_choices=body.num_choices,
        stream=bool(body.stream),
        include_usage=body.include_usage,
    )


@dataclass(slots=True)
class _Written:
    """What was sent of one choice."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
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
        delta = ReplyMessage()
        logprobs: ChatLogprobs | None = None
        if not written.is_begun:
            delta.role = "assistant"
            delta.content = ""
        match event:
            case Delta():
                if written.is_begun and not (event.text or event.logprobs):
                    return None
                written.texts.append(event.text)
                written.logprobs.extend(event.logprobs)
                if written.is_begun and not self.wants_logprobs:
                    return event.text
                delta.content = event.text
                logprobs = ChatLogprobs.of(event.logprobs) if self.wants_logprobs else None
            case Finished():
                written.finish_reason = event.finish_reason
        written.is_begun = True
        return ChunkChoice(index=choice.index, delta=delta, logprobs=logprobs, finish_reason=written.finish_reason)

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

    def usage_chunk(self, usage: Usage) -> bytes:
        return frame(self._chunk([], usage, None))

    def whole(self, usage: Usage, made: Made) -> Body:
        choices = [
            ChatChoice(
                index=index,
                message=ReplyMessage(role="assistant", content="".join(written.texts), refusal=None),
                logprobs=ChatLogprobs.of(written.logprobs) if self.wants_logprobs else None,
                finish_reason=written.finish_reason,
            )
            for index, written in enumerate(self.choices)
        ]
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
