"""A question to an index, an answer with checked citations: quoted without a language model, written with one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tripod.documents import Passage
from tripod.errors import CitationError, ConfigError
from tripod.protocols import ChatModel
from tripod.rag.answer import Answer, Citation
from tripod.rag.citations import cite
from tripod.rag.extractive import THRESHOLD, Extract, candidates, extract, quoted
from tripod.rag.prompts import ABSTENTION, qa
from tripod.rag.quotation import find_quotation
from tripod.rag.terms import question_terms
from tripod.sampling import GREEDY
from tripod.trace import Recorder

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
    min_confidence: float = THRESHOLD,
    max_tokens: int = 512,
    provenance: Provenance | None = None,
) -> Answer:
    """Answer a question from the documents of an index, or say that they do not answer it.

    Without a model the answer is extractive: one to three sentences, quoted and cited. With one it is generated from a prompt over the
    `k` best passages, and its markers and quotations are checked against them. Either way the question is first weighed against what was
    found, and below `min_confidence` nothing is quoted and no model is called.

    Args:
        question: in words; words that occur nowhere in the index count against an answer.
        index: an open index.
        model: a chat model, an address for `tripod.Model` (opened and closed here), or None.
        k: how many passages to read.
        min_confidence: 0 to 1. The default was chosen on held-out questions, see benchmarks/abstention.py; 0 never abstains on its account.
        max_tokens: of an answer that a model writes. Prompt and answer together must fit the model.
        provenance: follow each sentence back to the training steps of this checkpoint, usually the one that answers: `Answer.origins`.

    Raises:
        CitationError: the model cites a passage that it was not given or quotes what is not there; the message holds its text.
        ConfigError: the question is empty, or `k` is not positive.
    """
    if not question.strip():
        raise ConfigError("the question is empty; ask in words")
    if k < 1:
        raise ConfigError(f"k={k} reads no passage; give at least 1")
    answer = await _ask(question, index, model=model, k=k, min_confidence=min_confidence, max_tokens=max_tokens)
    if provenance is None or answer.kind == "abstained":
        return answer
    from tripod.rag.provenance import trace_answer

    return replace(answer, origins=trace_answer(answer, provenance))


async def _ask(question: str, index: Index, *, model: ChatModel | str | None, k: int, min_confidence: float, max_tokens: int) -> Answer:
    recorder = Recorder()
    notes = (index.mode_note,) if index.mode_note else ()
    with recorder.span("retrieve", k=k, question=question) as attributes:
        passages = _worth_reading(await index.search(question, k=_DEPTH * k), k)
        attributes["passages"] = [passage.id for passage in passages]
    with recorder.span("extract") as attributes:
        found = await _extract(question, passages, index)
        confidence = found.confidence if found is not None else 0.0
        attributes["confidence"] = confidence
        attributes["evidence"] = found.evidence if found is not None else None

    base = Answer(
        question=question, text=ABSTENTION, kind="abstained", passages=passages, confidence=confidence, notes=notes, trace=recorder.spans
    )
    if found is None or confidence < min_confidence:
        return base
    if model is None:
        text, citations = quoted(found.quotes, passages)
        with recorder.span("check", citations=len(citations)):
            citations = await _located(citations, text, index)
        return replace(base, text=text, kind="extractive", citations=citations, notes=(EXTRACTIVE_NOTE, *notes), trace=recorder.spans)
    if isinstance(model, str):
        from tripod.chat.model import Model

        async with Model(model) as opened:
            return await _generate(base, index, opened, recorder, max_tokens)
    return await _generate(base, index, model, recorder, max_tokens)


def _worth_reading(found: Sequence[Passage], k: int) -> tuple[Passage, ...]:
    """The k best passages in their order, those without a whole sentence last: one-line comments and lists of names rank high by words."""
    speaking = [bool(candidates([passage])) for passage in found]
    order = sorted(range(len(found)), key=lambda index: (not speaking[index], index))
    return tuple(found[index] for index in order[:k])


async def _generate(base: Answer, index: Index, model: ChatModel, recorder: Recorder, max_tokens: int) -> Answer:
    with recorder.span("prompt") as attributes:
        prompt = qa(base.question, base.passages)
        attributes["prompt"] = str(prompt)
    with recorder.span("generate") as attributes:
        reply = await model.complete(prompt, replace(GREEDY, max_tokens=max_tokens))
        attributes.update(model=reply.model, usage=reply.usage, timings=reply.timings, finish_reason=reply.finish_reason)
    text = reply.text.strip()
    answered = replace(base, model=reply.model, usage=reply.usage, reply=reply)
    if not text or _abstains(text):
        return replace(answered, trace=recorder.spans)
    with recorder.span("check") as attributes:
        citations = await _located(cite(text, base.passages, question=base.question), text, index)
        attributes["citations"] = len(citations)
    notes = base.notes
    if not citations:
        notes = ("the model cited nothing, so nothing in this answer was checked against the documents", *notes)
    if reply.finish_reason == "length":
        notes = (f"the answer was cut off after {reply.usage.completion_tokens} tokens", *notes)
    return replace(answered, text=text, kind="generated", citations=citations, notes=notes, trace=recorder.spans)


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


def _abstains(text: str) -> bool:
    """Whether a model wrote the sentence that it was told to write, give or take its punctuation and what it appends."""
    return text.lstrip("\"'\u201c*").casefold().startswith(ABSTENTION.rstrip(".").casefold())


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
