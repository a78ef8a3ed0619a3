"""Each sentence of an answer followed back: to its passage, to the engine's steps, to the checkpoint, to the training steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from tripod.messages import Reply
from tripod.rag.answer import Answer, Citation
from tripod.rag.sentences import sentence_spans

if TYPE_CHECKING:
    from tripod.text.tokenizer import Tokenizer
    from tripod.training.ngrams.provenance import Provenance
    from tripod.training.ngrams.trace import Trace


_MARKERS = re.compile(r"(?:\[[\d\s,;\u2013-]+\]\s*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceOrigin:
    """Where `answer.text[start:end]` comes from."""

    start: int
    end: int
    citations: tuple[Citation, ...]  # of this sentence
    token_ids: tuple[int, ...]  # as the model wrote it; empty where nobody tells
    step_ids: tuple[int, ...]  # the engine's steps that chose these tokens, in order; empty where nobody tells
    model: str  # run@stepN
    trace: Trace  # what of it that checkpoint had read, when and where


def trace_answer(answer: Answer, provenance: Provenance) -> tuple[SentenceOrigin, ...]:
    """Follow each sentence of an answer back. The tokens that were generated are traced, not a spelling of their text.

    Args:
        answer: of `tripod.ask`.
        provenance: of the checkpoint that wrote it, or of any other that is asked whether it had read this.
    """
    origins = []
    for start, end in _sentences(answer.text):
        tokens = _tokens_of(answer, start, end, provenance.tokenizer)
        reply = answer.reply
        ids: tuple[int, ...] = reply.token_ids[tokens] if reply is not None and tokens is not None else ()
        origins.append(
            SentenceOrigin(
                start=start,
                end=end,
                citations=tuple(one for one in answer.citations if one.start < end and one.end > start),
                token_ids=ids,
                step_ids=tuple(dict.fromkeys(reply.step_ids[tokens])) if reply is not None and tokens is not None else (),
                model=provenance.model,
                trace=provenance.trace(ids or answer.text[start:end]),
            )
        )
    return tuple(origins)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Sentences without the markers behind the stop of the one before: a [1] that begins a sentence is not about it."""
    for number, (start, end) in enumerate(sentence_spans(text)):
        markers = _MARKERS.match(text, start, end) if number else None
        start = markers.end() if markers is not None else start
        if start < end:
            yield start, end


def _tokens_of(answer: Answer, start: int, end: int, tokenizer: Tokenizer) -> slice | None:
    """Which of the reply's tokens hold characters of a stretch; None where the text is not the bytes of its tokens."""
    reply: Reply | None = answer.reply
    if reply is None or answer.text not in reply.text:
        return None
    stripped = reply.text.index(answer.text)
    pieces = [tokenizer.token_bytes(token) for token in reply.token_ids]
    if not b"".join(pieces).startswith(reply.text.encode()):
        return None
    first_byte, last_byte = (len(reply.text[: stripped + offset].encode()) for offset in (start, end))
    ends = list(accumulate(map(len, pieces)))
    first = next(number for number, stop in enumerate(ends) if stop > first_byte)
    last = next(number for number, stop in enumerate(ends) if stop >= last_byte)
    return slice(first, last + 1)
