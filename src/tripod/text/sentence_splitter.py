"""Passages of whole sentences: packed to a budget, one by one with a window around each, or grouped by meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError
from tripod.text.passages import passages_at, sections_to_cut
from tripod.text.sentences import sentence_spans
from tripod.text.splitter import Cutter, approximate_tokens, budget, check_budget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tripod.protocols import Vectors


@dataclass(frozen=True, slots=True)
class Sentences:
    """Passages of as many whole sentences as fit; each begins with the last `overlap` sentences of the one before, where those fit.

    A sentence that alone is too large is cut as `split` cuts.
    """

    max_tokens: int
    overlap: int = 0  # sentences
    count_tokens: Callable[[str], int] = approximate_tokens

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)
        if self.overlap < 0:
            raise ConfigError(f"overlap={self.overlap} is no number of sentences; give 0 or more")

    @property
    def fingerprint(self) -> str:
        return f"whole sentences, {budget(self.max_tokens, self.count_tokens)}, overlap {self.overlap}"

    def split(self, document: Document) -> list[Passage]:
        return passages_at(document, self._spans(document))

    def _spans(self, document: Document) -> Iterator[Section]:
        cutter = Cutter(document.text, self.max_tokens, self.count_tokens)
        for section in sections_to_cut(document):
            spans = sentences_within(document.text, section, cutter)
            first = 0
            while first < len(spans):
                last = first  # the sentences from `first` to `last` fit
                while last + 1 < len(spans) and self._fits(document.text, spans[first][0], spans[last + 1][1]):
                    last += 1
                yield Section(spans[first][0], spans[last][1], section.title)
                if last + 1 == len(spans):
                    break
                started, following = first, last + 1
                first = following
                # As many of the last sentences as asked for, fewer than there were, as long as a new one fits behind them.
                for candidate in range(max(started + 1, following - self.overlap), following):
                    if self._fits(document.text, spans[candidate][0], spans[following][1]):
                        first = candidate
                        break

    def _fits(self, text: str, start: int, end: int) -> bool:
        return self.count_tokens(text[start:end]) <= self.max_tokens


@dataclass(frozen=True, slots=True)
class SentenceWindow:
    """Each sentence is a passage, found by its own words; `around` gives it back with its neighbours, for a model to read.

    The window needs no metadata: it follows from the document and the place of the sentence.
    """

    window: int = 3  # sentences on either side
    max_tokens: int = 200  # a longer sentence is cut

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)
        if self.window < 0:
            raise ConfigError(f"window={self.window} is no number of sentences; give 0 or more")

    @property
    def fingerprint(self) -> str:
        return f"single sentences, {self.max_tokens} tokens"

    def split(self, document: Document) -> list[Passage]:
        cutter = Cutter(document.text, self.max_tokens, approximate_tokens)
        return passages_at(
            document,
            (
                Section(start, end, section.title)
                for section in sections_to_cut(document)
                for start, end in sentences_within(document.text, section, cutter)
            ),
        )

    def around(self, document: Document, passage: Passage) -> Passage:
        """The passage with `window` sentences on either side, within its section. Its page and line are those of the first of them.

        Args:
            document: the one that the passage was cut from, such as `await index.document(passage.source)`.
            passage: one that `split` made; its score is kept.
        """
        sentences = self.split(document)
        at = next((i for i, sentence in enumerate(sentences) if (sentence.start, sentence.end) == (passage.start, passage.end)), None)
        if at is None:
            raise ConfigError(f"{passage.id} is no sentence of its document; was it cut by another splitter, or did the document change?")
        section = next(section for section in sections_to_cut(document) if section.start <= passage.start < section.end)
        inside = [s for s in sentences[max(0, at - self.window) : at + self.window + 1] if section.start <= s.start < section.end]
        first, end = inside[0], inside[-1].end
        return replace(passage, start=first.start, end=end, text=document.text[first.start : end], page=first.page, line=first.line)


@dataclass(frozen=True, slots=True)
class Semantic:
    """Passages that end where the subject changes: between sentences that are unusually far apart, and at the budget at the latest.

    The distance between two neighbours is that of the stretches of `window` sentences before and after the place (Kamradt 2023,
    "5 Levels of Text Splitting", level 4).
    """

    embed: Callable[
        [Sequence[str]], Vectors
    ]  # texts to unit vectors [N, dim]; of an Embedder: lambda t: run(embedder.embed(t, kind="passage"))
    name: str  # of what embeds, for the fingerprint
    max_tokens: int = 200
    percentile: float = 90.0  # of the distances within one document: those above are where the subject changes
    window: int = 2  # sentences

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)
        if not 0 <= self.percentile <= 100 or self.window < 1:
            raise ConfigError(f"percentile={self.percentile}, window={self.window}: a percentile is 0 to 100, a window 1 or more")

    @property
    def fingerprint(self) -> str:
        return f"by meaning as {self.name} sees it, {self.max_tokens} tokens, percentile {self.percentile:g} over {self.window} sentences"

    def split(self, document: Document) -> list[Passage]:
        return passages_at(document, self._spans(document))

    def _spans(self, document: Document) -> Iterator[Section]:
        cutter = Cutter(document.text, self.max_tokens, approximate_tokens)
        for section in sections_to_cut(document):
            spans = sentences_within(document.text, section, cutter)
            breaks = self._breaks(document.text, spans)
            start = spans[0][0] if spans else 0
            for i, (_, end) in enumerate(spans):
                if i + 1 == len(spans) or i in breaks:
                    for piece in cutter.cut(start, end):
                        yield Section(*piece, section.title)
                    start = spans[i + 1][0] if i + 1 < len(spans) else end

    def _breaks(self, text: str, spans: Sequence[tuple[int, int]]) -> set[int]:
        """The sentences after which the subject changes."""
        if len(spans) < 3:
            return set()
        import numpy as np

        num = len(spans)
        before = [text[spans[max(0, i + 1 - self.window)][0] : spans[i][1]] for i in range(num - 1)]
        after = [text[spans[i + 1][0] : spans[min(num - 1, i + self.window)][1]] for i in range(num - 1)]
        vectors = self.embed([*before, *after])
        distances: NDArray[np.float32] = 1.0 - np.sum(vectors[: num - 1] * vectors[num - 1 :], axis=1)
        return {int(i) for i in np.flatnonzero(distances > np.percentile(distances, self.percentile))}


def sentences_within(text: str, section: Section, cutter: Cutter) -> list[tuple[int, int]]:
    """The sentences of a section, and the pieces of those that exceed the budget."""
    return [
        piece
        for start, end in sentence_spans(text[section.start : section.end])
        for piece in cutter.cut(section.start + start, section.start + end)
    ]
