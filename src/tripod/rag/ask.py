"""A question to an index, an answer with checked citations: quoted without a language model, written with one."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from tripod.documents import Passage
from tripod.errors import CitationError, ConfigError
from tripod.filters import Where
from tripod.protocols import ChatModel
from tripod.rag.answer import Answer, Citation
from tripod.rag.confidence import Calibration, answerability, signals
from tripod.rag.extractive import THRESHOLD, Extract, candidates, extract, quoted
from tripod.rag.prompts import ABSTENTION
from tripod.rag.quotation import find_quotation
from tripod.rag.synthesis import Synthesis, stuff
from tripod.rag.terms import question_terms
from tripod.rag.writing import Writing, Written
from tripod.trace import Delta, Span, attach, timed

if TYPE_CHECKING:
    from tripod.retrieval.index import Index
    from tripod.training.ngrams.provenance import Provenance

EXTRACTIVE_NOTE = "no language model was used: these are sentences of the documents, quoted"
_DEPTH = 4  # times as many passages are looked at as are read
_COUNTED = 200  # occurrences beyond this many do not make a word commoner


async def ask(
    question: str,
    index: Index,
    *,
    model: ChatModel | str | None = None,
    k: int = 6,
    where: Where | None = None,
    min_confidence: float | None = None,
    max_tokens: int = 512,
    writing: Writing | None = None,
    synthesis: Synthesis = stuff,
    calibration: Calibration | None = None,
    provenance: Provenance | None = None,
) -> Answer:
    """Answer a question from the documents of an index, or say that they do not answer it.

    Without a model the answer is extractive: one to three sentences, quoted and cited. With one it is generated from prompts over the
    `k` best passages. A model in this process can cite nothing else and quote nothing else, because a grammar rules it out; what another
    model writes is checked afterwards. Either way the question is first weighed against what was found, and below `min_confidence` nothing
    is quoted and no model is called.

    Args:
        question: in words; words that occur nowhere in the index count against an answer.
        index: an open index.
        model: a chat model, an address for `tripod.Model` (opened and closed here), or None.
        k: how many passages to read.
        where: only of sources whose metadata is so, as in `Index.search`.
        min_confidence: 0 to 1. None: the calibration's threshold, or one that was chosen on held-out questions, see
            benchmarks/abstention.py; 0 never abstains on its account.
        max_tokens: of an answer that a model writes. Prompt and answer together must fit the model.
        writing: how a model writes, in full; then `max_tokens` is not looked at.
        synthesis: how passages become an answer: `stuff`, `refine`, `tree` or `accumulate` of `rag.synthesis`.
        calibration: how sure to be, instead of the built-in weights. With the signal "answerability" the model is asked, before it
            answers, whether the passages do; with "logprob" its own answer counts too.
        provenance: follow each sentence back to the training steps of this checkpoint, usually the one that answers: `Answer.origins`. The
            answer is then written freely and checked afterwards, unless `writing` says otherwise: the marks of a construction stand
            between the tokens that are traced.

    Raises:
        CitationError: the model cites a passage that it was not given or quotes what is not there; the message holds its text.
        ConfigError: the question is empty, or `k` is not positive.
        RequestError: a filter that cannot be.
    """
    if provenance is not None and writing is None:
        writing = Writing(max_tokens=max_tokens, is_constructed=False)
    events = stream_answer(
        question,
        index,
        model=model,
        k=k,
        where=where,
        min_confidence=min_confidence,
        max_tokens=max_tokens,
        writing=writing,
        synthesis=synthesis,
        calibration=calibration,
    )
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answer):
                return event if provenance is None or event.kind == "abstained" else _traced(event, provenance)
    raise AssertionError("the last event is an answer")


async def stream_answer(
    question: str,
    index: Index,
    *,
    model: ChatModel | str | None = None,
    k: int = 6,
    where: Where | None = None,
    min_confidence: float | None = None,
    max_tokens: int = 512,
    writing: Writing | None = None,
    synthesis: Synthesis = stuff,
    calibration: Calibration | None = None,
) -> AsyncGenerator[Delta | Answer, None]:
    """`ask` as it happens: the text piece by piece, and at the end the `Answer` with its checked citations, which alone is to be relied on.

    Closing the generator stops the model. Arguments and errors are those of `ask`.
    """
    if not question.strip():
        raise ConfigError("the question is empty; ask in words")
    if k < 1:
        raise ConfigError(f"k={k} reads no passage; give at least 1")
    if min_confidence is None:
        min_confidence = calibration.threshold if calibration else THRESHOLD
    async with AsyncExitStack() as opened:
        if isinstance(model, str):
            from tripod.chat.model import Model

            model = await opened.enter_async_context(Model(model))
        spans: list[Span] = []
        told = opened.enter_context(timed(attach, "ask", spans, question=question))
        with timed(spans.append, "retrieve", k=k, question=question) as attributes:
            passages = _worth_reading(await index.search(question, k=_DEPTH * k, where=where), k)
            attributes["passages"] = [passage.id for passage in passages]
        with timed(spans.append, "extract") as attributes:
            found = await _extract(question, passages, index)
            known = signals(found.evidence if found else None)
            confidence = calibration.confidence(known) if calibration else found.confidence if found else 0.0
            attributes["confidence"] = confidence
            attributes["evidence"] = found.evidence if found is not None else None
        if calibration is not None and model is not None and "answerability" in calibration.weights and passages:
            with timed(spans.append, "answerability") as attributes:
                likely = await answerability(question, passages, model)
                known = signals(found.evidence if found else None, answerability=likely)
                confidence = calibration.confidence(known)
                attributes.update(answerability=likely, confidence=confidence)
        base = Answer(
            question=question,
            text=ABSTENTION,
            kind="abstained",
            passages=passages,
            confidence=confidence,
            notes=(index.mode_note,) if index.mode_note else (),
            trace=tuple(spans),
        )
        told["confidence"] = confidence
        waits_for_answer = calibration is not None and model is not None and "logprob" in calibration.weights
        if found is None or (confidence < min_confidence and not waits_for_answer):
            yield base
        elif model is None:
            yield await _quoted(base, found, index, spans)
        else:
            events = synthesis(question, dict(enumerate(passages, start=1)), model, writing or Writing(max_tokens=max_tokens))
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Delta):
                        yield event
                        continue
                    answer = await _generated(base, event, index, spans)
                    if waits_for_answer and calibration is not None:
                        sure = calibration.confidence({**known, **signals(found.evidence, logprob=event.logprob)})
                        answer = replace(answer, confidence=sure)
                        if sure < min_confidence:
                            answer = replace(answer, text=ABSTENTION, kind="abstained", citations=())
                    yield answer


def _traced(answer: Answer, provenance: Provenance) -> Answer:
    from tripod.rag.provenance import trace_answer

    return replace(answer, origins=trace_answer(answer, provenance))


async def _quoted(base: Answer, found: Extract, index: Index, spans: list[Span]) -> Answer:
    text, citations = quoted(found.quotes, base.passages)
    with timed(spans.append, "check", citations=len(citations)):
        citations = await _located(citations, text, index)
    return replace(base, text=text, kind="extractive", citations=citations, notes=(EXTRACTIVE_NOTE, *base.notes), trace=tuple(spans))


async def _generated(base: Answer, written: Written, index: Index, spans: list[Span]) -> Answer:
    spans.extend(written.trace)
    answered = replace(base, model=written.model, usage=written.usage, reply=written.reply, notes=(*written.notes, *base.notes))
    if not written.text:
        return replace(answered, trace=tuple(spans))
    with timed(spans.append, "locate") as attributes:
        citations = await _located(written.citations, written.text, index)
        attributes["citations"] = len(citations)
    return replace(answered, text=written.text, kind="generated", citations=citations, trace=tuple(spans))


def _worth_reading(found: Sequence[Passage], k: int) -> tuple[Passage, ...]:
    """The k best passages in their order, those without a whole sentence last: one-line comments and lists of names rank high by words."""
    speaking = [bool(candidates([passage])) for passage in found]
    order = sorted(range(len(found)), key=lambda index: (not speaking[index], index))
    return tuple(found[index] for index in order[:k])


async def _located(citations: Sequence[Citation], text: str, index: Index) -> tuple[Citation, ...]:
    """The citations with the lines that their documents know, each compared with the index's own copy of its document.

    Raises:
        CitationError: the index holds other words at that place than the passage says.
        NotFoundError: a source left the index while the answer was made.
    """
    documents = {source: await index.document(source) for source in sorted({citation.source for citation in citations})}
    located: list[Citation] = []
    for citation in citations:
        document = documents[citation.source]
        original = document.text[citation.source_start : citation.source_end]
        quotation = text[citation.start : citation.end]
        if original != citation.quote or (citation.is_quotation and find_quotation(quotation, original) is None):
            raise CitationError(
                f"the answer cites characters [{citation.source_start}, {citation.source_end}) of {citation.source!r} for {quotation!r}, "
                f"but the index holds {original!r} there; was the source changed while the answer was made? Ask again"
            )
        located.append(replace(citation, line=document.line_at(citation.source_start)))
    return tuple(located)


async def _extract(question: str, passages: Sequence[Passage], index: Index) -> Extract | None:
    found = candidates(passages)
    if not found:
        return None
    asked = question_terms(question)
    # The index knows `TemporaryDirectory` as one word, and we as two; what was just read occurs in it at any rate.
    read = {candidate.number: candidate.context for candidate in found}.values()
    in_index = await index.count(list(asked.values()))
    counts = {term: max(number, sum(term in context for context in read)) for term, number in zip(asked, in_index, strict=True)}
    similarities: list[float] | None = None
    if index.embedder is not None:
        query = await index.embedder.embed([question], kind="query")
        sentences = await index.embedder.embed([candidate.text for candidate in found], kind="passage")
        similarities = [float(similarity) for similarity in sentences @ query[0]]
    return extract(
        question,
        found,
        {term: rarity(count) for term, count in counts.items()},
        known=frozenset(term for term, count in counts.items() if count),
        similarities=similarities,
    )


def rarity(count: int) -> float:
    """How telling a word is that occurs in `count` passages: an inverse document frequency that needs no size of the index."""
    return math.log(1.0 + 1000.0 / (1.0 + min(count, _COUNTED)))
