"""One answer written by a model over given passages, as it comes: by the grammar of `rag.constructed` where the model takes one, else
freely and checked afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from tripod.chat.closing import closing
from tripod.documents import Passage
from tripod.errors import ConfigError, EngineError
from tripod.messages import Reply, Usage
from tripod.prompts import Prompt
from tripod.protocols import ChatModel
from tripod.rag.answer import Citation
from tripod.rag.citations import cite
from tripod.rag.constructed import Construction, Style, read
from tripod.rag.prompts import ABSTENTION, form_of, qa
from tripod.sampling import GREEDY, SamplingParams
from tripod.trace import Delta, Event, Span, fold, timed

UNCITED_NOTE = "the model cited nothing, so nothing in this answer was checked against the documents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How an answer is written.

    Args:
        is_constructed: whether a grammar holds the model to the passages. None: where the model says that it takes one (`constrains`), as
            one in this process does; True also asks a server for it, which must then be one of ours or take Lark grammars.
        style: "quotations" lets a model say nothing in its own words; only where it is constructed.
        max_statements: of a constructed answer.
        max_tokens: of an answer.
        sampling: how tokens are chosen.

    Raises:
        ConfigError: quotations alone without a construction, or a grammar in `sampling`.
    """

    is_constructed: bool | None = None
    style: Style = "statements"
    max_statements: int = 4
    max_tokens: int = 512
    sampling: SamplingParams = GREEDY

    def __post_init__(self) -> None:
        if self.style == "quotations" and self.is_constructed is False:
            raise ConfigError('style="quotations" is held by a grammar, so is_constructed=False contradicts it; leave one out')
        if self.sampling.grammar is not None:
            raise ConfigError("the sampling of an answer holds a grammar of its own; is_constructed says whether there is one")


DEFAULT_WRITING = Writing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written: always the last of `write`'s events. `text` is empty where the model abstained."""

    text: str
    citations: tuple[Citation, ...]
    model: str
    usage: Usage
    notes: tuple[str, ...] = ()
    logprob: float | None = None  # mean natural logarithm of the tokens' probabilities, without the grammar; None where it is not told
    trace: tuple[Span, ...] = ()
    reply: Reply | None = None  # what the model wrote, with its tokens


class AsksOver(Protocol):
    """Builds the prompt, such as `prompts.qa`; `form` says how the answer is to be written."""

    def __call__(self, *, form: str) -> Prompt: ...


def constrains(model: ChatModel) -> bool:
    """Whether a model says that it takes grammars."""
    return bool(getattr(model, "constrains", False))


async def write(
    question: str, given: Mapping[int, Passage], model: ChatModel, writing: Writing = DEFAULT_WRITING, *, prompt: AsksOver | None = None
) -> AsyncGenerator[Delta | Written, None]:
    """Let a model answer from passages.

    Args:
        question: as it was asked; what it says may be repeated between quotation marks in an answer that is checked afterwards.
        given: passages by number.
        model: closing the generator stops its work.
        writing: how.
        prompt: None asks `prompts.qa`.

    Yields:
        `Delta`s as they come, and one `Written` at the end.

    Raises:
        CitationError: the answer cites a passage that was not given or quotes what is not there; the message holds its text.
        RequestError: the model refuses the prompt or the grammar.
    """
    is_constructed = constrains(model) if writing.is_constructed is None else writing.is_constructed
    if writing.style == "quotations" and not is_constructed:
        raise ConfigError('style="quotations" needs a model that takes grammars; give is_constructed=True if this one does')
    spans: list[Span] = []
    construction = Construction(given=given, style=writing.style, max_statements=writing.max_statements) if is_constructed else None
    with timed(spans.append, "prompt") as attributes:
        ask: Callable[..., Prompt] = prompt or (lambda **options: qa(question, given, **options))
        asked = ask(form=form_of(construction.marks, writing.style)) if construction else ask()
        attributes["prompt"] = str(asked)
    sampling = replace(writing.sampling, max_tokens=writing.max_tokens)
    if construction is not None:
        sampling = replace(sampling, grammar=construction.grammar, logprobs=0 if constrains(model) else None)
    shown = construction.shower() if construction else str
    events: list[Event] = []
    with timed(spans.append, "generate", is_constructed=is_constructed) as attributes:
        async with closing(model.stream(asked, sampling)) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, Delta):
                    yield replace(event, text=shown(event.text))
        reply = await fold(_replayed(events))
        attributes.update(model=reply.model, usage=reply.usage, timings=reply.timings, finish_reason=reply.finish_reason)
    is_cut = reply.finish_reason != "stop"
    with timed(spans.append, "check") as attributes:
        notes: tuple[str, ...] = ()
        if construction is not None:
            reading = read(reply.text, construction, is_cut=is_cut)
            text, citations = reading.text, reading.citations
            if reading.dropped:
                notes = (f"{_cut(reply.usage)}; what nothing supported was left out: {reading.dropped!r}",)
        else:
            text = reply.text.strip()
            text = "" if abstains(text) else text
            citations = cite(text, given, question=question) if text else ()
            if text and not citations:
                notes = (UNCITED_NOTE,)
            if text and is_cut:
                notes = (_cut(reply.usage), *notes)
        attributes["citations"] = len(citations)
    logprobs = [token.logprob for token in reply.logprobs]
    yield Written(
        text=text,
        citations=citations,
        model=reply.model,
        usage=reply.usage,
        notes=notes,
        logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        trace=tuple(spans),
        reply=reply,
    )


async def written(events: AsyncGenerator[Delta | Written, None]) -> Written:
    """The whole of what `write` yields."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Written):
                return event
    raise EngineError("an answer ended without its last event; the model that wrote it is broken")


def abstains(text: str) -> bool:
    """Whether a model wrote the sentence that it was told to write, give or take its punctuation and what it appends."""
    return text.lstrip("\"'\u201c*").casefold().startswith(ABSTENTION.rstrip(".").casefold())


def _cut(usage: Usage) -> str:
    return f"the answer was cut off after {usage.completion_tokens} tokens"


async def _replayed(events: Sequence[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event
