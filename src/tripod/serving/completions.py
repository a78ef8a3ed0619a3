"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response

from tripod.chat.wire.openai import CompletionBody
from tripod.chat.wire.openai_replies import Completion, CompletionChoice, CompletionLogprobs, ErrorBody, Made, completion_logprobs
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.chat.wire.sse import DONE, ChunkTemplate, frame
from tripod.messages import TokenLogprob, Usage
from tripod.serving.answers import Body, respond
from tripod.serving.bodies import read_body
from tripod.serving.generation import Choice, choices_of
from tripod.serving.served import admit, check_grammar, tokenize
from tripod.serving.visit import Visit
from tripod.text.detokenizer import Detokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.trace import Delta, Event, Finished


async def completions(request: Request) -> Response:
    """Continues one or more prompts, `n` times each."""
    visit = Visit.of(request)
    served = visit.served
    body = await read_body(request, CompletionBody, served.config)
    engine = served.engine_for(body.model)
    sampling = body.to_sampling()
    admit(visit, body, [prompt if isinstance(prompt, list) else len(prompt) for prompt in body.prompts])
    await check_grammar(engine, sampling, body.grammar_field)
    prompt_ids = await tokenize(engine, body.prompts, visit)
    writer = CompletionWriter(
        model=engine.name,
        pieces=[
            _Pieces(engine.tokenizer, prompt, ids, echo=bool(body.echo), wants_logprobs=body.logprobs is not None)
            for prompt, ids in zip(body.prompts, prompt_ids, strict=True)
            for _ in range(body.num_choices)
        ],
        include_usage=body.include_usage,
    )
    return await respond(
        request,
        engine,
        choices_of(prompt_ids, sampling, body.num_choices),
        writer,
        num_choices=body.num_choices,
        stream=bool(body.stream),
    )


class _Pieces:
    """The pieces of one choice: what is sent, in order. The whole choice is their concatenation."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: str | list[int], prompt_ids: tuple[int, ...], *, echo: bool, wants_logprobs: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._given = prompt
        self._prompt_ids = prompt_ids
        self._is_echo_due = echo
        self._wants_logprobs = wants_logprobs
        # The prompt's log-probabilities are known when the request is finished, and they stand before the answer's.
        self._held: list[Delta] | None = [] if echo and wants_logprobs else None
        self._end = 0  # characters up to the next token
        self.sent: list[CompletionChoice] = []

    @cached_property
    def _prompt(self) -> _Prompt:
        return _Prompt(self._tokenizer, self._prompt_ids)

    def _echo(self) -> str:
        """What stands before the answer, once."""
        if not self._is_echo_due:
            return ""
        self._is_echo_due = False
        text = self._given if isinstance(self._given, str) else self._prompt.text
        self._end = len(text)
        return text

    def push(self, index: int, event: Event) -> CompletionChoice | None:
        """The next piece; None while there is nothing to send."""
        match event:
            case Delta() if self._held is not None:
                self._held.append(event)
                return None
            case Delta():
                text, reason = self._echo() + event.text, None
                if not (text or event.logprobs):
                    return None
                logprobs = completion_logprobs(event.logprobs, self._offsets(event.logprobs)) if self._wants_logprobs else None
            case Finished():
                text, reason = self._echo() + "".join(delta.text for delta in self._held or ()), event.finish_reason
                logprobs = self._whole_logprobs(event, self._held) if self._held is not None else None
        piece = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)
        self.sent.append(piece)
        return piece

    def _whole_logprobs(self, event: Finished, held: list[Delta]) -> CompletionLogprobs:
        prompt = [entry or self._prompt.first_token for entry in event.prompt_logprobs]
        answer = [entry for delta in held for entry in delta.logprobs]
        return completion_logprobs([*prompt, *answer], [*self._prompt.offsets, *self._offsets(answer)], follows_nothing=True)

    def _offsets(self, entries: Sequence[TokenLogprob]) -> list[int]:
        """Where these tokens of the answer begin."""
        offsets = []
        for entry in entries:
            piece = self._prompt.detokenizer.push(entry.token_id)
            offsets.append(_begin(self._end, piece, entry.token_bytes))
            self._end += len(piece)
        return offsets

    def whole(self, index: int) -> CompletionChoice:
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[]) if self._wants_logprobs else None
        for piece in self.sent:
            if logprobs is not None and piece.logprobs is not None:
                logprobs.tokens += piece.logprobs.tokens
                logprobs.token_logprobs += piece.logprobs.token_logprobs
                logprobs.top_logprobs += piece.logprobs.top_logprobs
                logprobs.text_offset += piece.logprobs.text_offset
        text = "".join(piece.text for piece in self.sent)
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=self.sent[-1].finish_reason)


class _Prompt:
    """A prompt as the text that its tokens give, and where each begins; the detokenizer stands at its end."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...]) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.offsets: list[int] = []
        self.text = ""
        for token_id in prompt_ids:
            piece = self.detokenizer.push(token_id)  # a character cut by the end of the prompt belongs to the answer
            self.offsets.append(_begin(len(self.text), piece, tokenizer.token_bytes(token_id)))
            self.text += piece
        first = prompt_ids[0]
        self.first_token = TokenLogprob(first, tokenizer.token_text(first), tokenizer.token_bytes(first), 0.0)


def _begin(end: int, piece: str, token_bytes: bytes) -> int:
    """Where a token begins that adds `piece` to a text of `end` characters. One inside a character begins where the character does."""
    try:
        num_characters = len(token_bytes.decode("utf-8"))
    except UnicodeDecodeError:
        return end
    return max(end, end + len(piece) - num_characters)  # a mark for a broken character before it may have come with it


@dataclass(slots=True, kw_only=True)
class CompletionWriter:
    """Writes `text_completion` bodies."""

    model: str
    pieces: list[_Pieces]  # one a choice
    include_usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _templates: dict[int, ChunkTemplate] = field(default_factory=dict)  # of chunks with text alone, by choice

    def take(self, choice: Choice, event: Event) -> None:
        self.pieces[choice.index].push(choice.index, event)

    def chunk(self, choice: Choice, event: Event, made: Made | None) -> bytes | None:
        piece = self.pieces[choice.index].push(choice.index, event)
        if piece is None:
            return None
        if piece.logprobs is not None or piece.finish_reason is not None or made is not None:
            return frame(self._body([piece], None, made))
        template = self._templates.get(choice.index)
        if template is None:
            template = self._templates[choice.index] = ChunkTemplate(
                lambda text: self._body([CompletionChoice(index=choice.index, text=text, logprobs=None, finish_reason=None)], None, None)
            )
        return template.frame(piece.text)

    def end(self, usage: Usage) -> bytes:
        return frame(self._body([], usage, None)) + DONE if self.include_usage else DONE

    def failed(self, error: ErrorBody) -> bytes:
        return frame(error.to_json())

    def whole(self, usage: Usage, made: Made) -> Body:
        return self._body([pieces.whole(index) for index, pieces in enumerate(self.pieces)], usage, made)

    def _body(self, choices: list[CompletionChoice], usage: Usage | None, made: Made | None) -> Body:
        body = Completion(id=self.id, object="text_completion", created=self.created, model=self.model, choices=choices)
        if usage is not None or self.include_usage:  # with it, every chunk has the key
            body.usage = UsageBody.of(usage) if usage is not None else None
        if made is not None:
            body.tripod = made
        return body.to_json()
