"""From a text back to the batches: its longest stretches that a run had read before a checkpoint, the rarest first.

The stretches are maximal: none can be made longer at either end and still be found. They may overlap. As in OLMoTrace (Liu et al.
2025, arXiv:2504.07096), a stretch ranks by the product of its tokens' frequencies, so a name comes before a phrase that anyone says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tripod.errors import ConfigError
from tripod.text.tokenizer import Tokenizer
from tripod.training.ngrams.index import NGramIndex, Sightings

MIN_TOKENS = 4  # shorter stretches are found in any text
_OPENINGS = ("", " ")  # what may stand before a text, and makes another token of its first word


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSpan:
    """Tokens [start, stop) of a text, in the spelling of `ids`, which the run had read together."""

    start: int
    stop: int
    ids: tuple[int, ...]
    text: str
    information: float  # bits, see `NGramIndex.information`: the higher, the rarer
    seen: Sightings  # before the checkpoint, in order; never empty
    num_later: int  # times that the run reads it after the checkpoint

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What of a text a checkpoint had read."""

    ids: tuple[int, ...]  # of the text
    step: int  # of the checkpoint
    min_tokens: int
    num_covered: int  # tokens of the text that stand in at least one of the spans
    spans: tuple[TracedSpan, ...]  # the rarest first

    @property
    def longest(self) -> TracedSpan | None:
        """The one of most tokens; of equals the rarest."""
        return max(self.spans, key=lambda span: span.num_tokens, default=None)


def trace(
    index: NGramIndex, text: str | Sequence[int], tokenizer: Tokenizer, *, step: int | None = None, min_tokens: int = MIN_TOKENS
) -> Trace:
    """Find the maximal stretches of a text that a run had read.

    Args:
        index: of the run.
        text: as token ids, exactly those; or as text. Its first word is another token behind a space than behind a line break or a
            quotation mark, so a text is traced both ways: told by the tokens of which more were read together, and what was read with
            the first word in its other spelling is listed as well.
        tokenizer: of the run.
        step: of the checkpoint; None: the end of the run.
        min_tokens: of a stretch; a text that is shorter counts as a whole.

    Raises:
        ConfigError: the text has no tokens, or the run no such step.
    """
    step = index.facts.num_steps if step is None else step
    if not isinstance(text, str):
        return _trace(index, tuple(text), tokenizer, step, min_tokens)
    found = [
        _trace(index, tuple(tokenizer.encode(opening + text, add_special_tokens=False)), tokenizer, step, min_tokens)
        for opening in (_OPENINGS if text[:1].strip() else _OPENINGS[:1])
    ]
    best = max(found, key=lambda one: (_longest_bytes(one), one.num_covered))
    others = [span for one in found if one is not best for span in one.spans if span.start == 0]
    return replace(best, spans=_rarest_first([*best.spans, *others]))


def _trace(index: NGramIndex, ids: tuple[int, ...], tokenizer: Tokenizer, step: int, min_tokens: int) -> Trace:
    if not ids:
        raise ConfigError("an empty text was given; there is nothing to trace")
    min_tokens = max(1, min(min_tokens, len(ids)))
    lengths = index.longest(ids, step=step, at_least=min_tokens)
    stops = np.arange(len(ids)) + lengths
    # From one token to the next the end of what is found never moves back, so a stretch is maximal where it moves on.
    is_maximal = (lengths > 0) & (stops > np.concatenate([[0], np.maximum.accumulate(np.where(lengths > 0, stops, 0))[:-1]]))
    spans = []
    begins, ends = np.flatnonzero(is_maximal).tolist(), stops[is_maximal].tolist()
    for start, stop, sightings in zip(begins, ends, index.find_stretches(ids, begins, ends), strict=True):
        of_span = ids[start:stop]
        seen = sightings.before(step)
        spans.append(
            TracedSpan(
                start=start,
                stop=stop,
                ids=of_span,
                text=tokenizer.decode(of_span, skip_special_tokens=False),
                information=index.information(of_span),
                seen=seen,
                num_later=len(sightings) - len(seen),
            )
        )
    covered = np.zeros(len(ids), bool)
    for span in spans:
        covered[span.start : span.stop] = True
    return Trace(ids=ids, step=step, min_tokens=min_tokens, num_covered=int(covered.sum()), spans=_rarest_first(spans))


def _rarest_first(spans: Sequence[TracedSpan]) -> tuple[TracedSpan, ...]:
    return tuple(sorted(spans, key=lambda span: (-span.information, span.start)))


def _longest_bytes(traced: Trace) -> int:
    return max((len(span.text.encode().strip()) for span in traced.spans), default=0)
