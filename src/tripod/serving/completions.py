"""POST /v1/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from tripod.chat.wire.openai import CompletionBody
from tripod.chat.wire.openai_replies import Completion, CompletionChoice, CompletionLogprobs, completion_logprobs
from tripod.chat.wire.openai_replies import Usage as UsageBody
from tripod.messages import TokenLogprob, Usage
from tripod.serving.answers import Body, respond
from tripod.serving.bodies import read_body
from tripod.serving.generation import Choice, choices_of
from tripod.serving.served import Served, tokenize
from tripod.text.detokenizer import Detokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.trace import Delta, Event, Finished

if TYPE_CHECKING:
    from tripod.engine.engine import Engine


async def completions(request: Request) -> Response:
    """Continues one or more prompts, `n` times each."""
    served = Served.of(request)
    body = await read_body(request, CompletionBody, served.max_body_bytes)
    engine = served.engine_for(body.model)
    sampling = body.to_sampling()
    prompt_ids = await tokenize(engine, body.prompts)
    writer = CompletionWriter(
        model=engine.name,
        pieces=[
            _Pieces(engine.tokenizer, ids, echo=_echo(engine, prompt, ids) if body.echo else None, wants_logprobs=body.logprobs is not None)
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
        served.metrics,
        num_choices=body.num_choices,
        stream=bool(body.stream),
        include_usage=body.include_usage,
    )


def _echo(engine: Engine, prompt: str | list[int], prompt_ids: tuple[int, ...]) -> str:
    return prompt if isinstance(prompt, str) else engine.tokenizer.decode(prompt_ids)


class _Pieces:
    """The pieces of one choice: what is sent, in order. The whole choice is their concatenation."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...], *, echo: str | None, wants_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._echo = echo or ""
        self._wants_logprobs = wants_logprobs
        # The prompt's log-probabilities are known when the request is finished, and they stand before the answer's.
        self._held: list[Delta] | None = [] if echo is not None and wants_logprobs else None
        self._offsets = _Offsets(tokenizer, start=len(self._echo))
        self.sent: list[CompletionChoice] = []

    def push(self, index: int, event: Event) -> CompletionChoice | None:
        """The next piece; None while there is nothing to send."""
        match event:
            case Delta() if self._held is not None:
                self._held.append(event)
                return None
            case Delta():
                if not (event.text or event.logprobs or self._echo):
                    return None
                text, reason = event.text, None
                logprobs = completion_logprobs(event.logprobs, self._offsets.push(event.logprobs)) if self._wants_logprobs else None
            case Finished():
                text, reason = "".join(delta.text for delta in self._held or ()), event.finish_reason
                logprobs = self._whole_logprobs(event, self._held) if self._held is not None else None
        piece = CompletionChoice(index=index, text=self._echo + text, logprobs=logprobs, finish_reason=reason)
        self._echo = ""
        self.sent.append(piece)
        return piece

    def _whole_logprobs(self, event: Finished, held: list[Delta]) -> CompletionLogprobs:
        first = self._prompt_ids[0]
        nothing = TokenLogprob(first, self._tokenizer.token_text(first), self._tokenizer.token_bytes(first), 0.0)
        prompt = [entry or nothing for entry in event.prompt_logprobs]
        answer = [entry for delta in held for entry in delta.logprobs]
        offsets = [*_Offsets(self._tokenizer).push(prompt), *self._offsets.push(answer)]
        return completion_logprobs([*prompt, *answer], offsets, follows_nothing=True)

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


class _Offsets:
    """Where each token begins, in characters of the text. A token inside a character begins where the text so far ends."""

    def __init__(self, tokenizer: Tokenizer, *, start: int = 0) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._end = start

    def push(self, entries: Sequence[TokenLogprob]) -> list[int]:
        offsets = []
        for entry in entries:
            offsets.append(self._end)
            self._end += len(self._detokenizer.push(entry.token_id))
        return offsets


@dataclass(slots=True, kw_only=True)
class CompletionWriter:
    """Writes `text_completion` bodies."""

    model: str
    pieces: list[_Pieces]  # one a choice
    include_usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choice: Choice, event: Event) -> Body | None:
        piece = self.pieces[choice.index].push(choice.index, event)
        return None if piece is None else self._body([piece], None)

    def usage_chunk(self, usage: Usage) -> Body:
        return self._body([], usage)

    def whole(self, usage: Usage) -> Body:
        return self._body([pieces.whole(index) for index, pieces in enumerate(self.pieces)], usage)

    def _body(self, choices: list[CompletionChoice], usage: Usage | None) -> Body:
        body = Completion(id=self.id, object="text_completion", created=self.created, model=self.model, choices=choices)
        if usage is not None or self.include_usage:  # with it, every chunk has the key
            body.usage = UsageBody.of(usage) if usage is not None else None
        return body.to_json()
