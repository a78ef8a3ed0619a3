"""Passages of so many tokens of a given tokenizer, with an overlap: no regard for meaning, and no surprise for a model's window."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError
from tripod.text.passages import passages_at, sections_to_cut
from tripod.text.splitter import Cutter, check_budget
from tripod.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Tokens:
    """Passages of `max_tokens` tokens, each beginning `overlap` tokens before the end of the one before.

    A border inside a character moves to its beginning. A section that the tokenizer does not spell back byte for byte (it
    normalises) is cut at words by counting instead, within the same budget and without overlap.
    """

    tokenizer: Tokenizer
    name: str  # of the tokenizer, for the fingerprint
    max_tokens: int = 256
    overlap: int = 0

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)
        if not 0 <= self.overlap < self.max_tokens:
            raise ConfigError(f"overlap={self.overlap} must be 0 or more, and less than max_tokens={self.max_tokens}")

    @property
    def fingerprint(self) -> str:
        return f"{self.max_tokens} tokens of {self.name}, overlap {self.overlap}"

    def split(self, document: Document) -> list[Passage]:
        return passages_at(document, self._spans(document))

    def _spans(self, document: Document) -> Iterator[Section]:
        for section in sections_to_cut(document):
            borders = self._borders(document.text[section.start : section.end])
            if borders is None:
                cutter = Cutter(document.text, self.max_tokens, lambda text: len(self.tokenizer.encode(text, add_special_tokens=False)))
                yield from (Section(start, end, section.title) for start, end in cutter.cut(section.start, section.end))
                continue
            first = 0
            while first < len(borders) - 1:
                last = min(first + self.max_tokens, len(borders) - 1)
                yield Section(section.start + borders[first], section.start + borders[last], section.title)
                if last == len(borders) - 1:
                    break
                first = last - self.overlap

    def _borders(self, text: str) -> list[int] | None:
        """Where each token begins, in characters, and the end of the text; None if the tokens' bytes are not the text's."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        pieces = [self.tokenizer.token_bytes(token_id) for token_id in ids]
        if ids:
            pieces[0] = self.tokenizer.opening_bytes(ids[0])[0]
        if b"".join(pieces) != text.encode(errors="surrogatepass"):
            return None
        starts = list(accumulate((len(character.encode(errors="surrogatepass")) for character in text), initial=0))
        return [bisect_right(starts, offset) - 1 for offset in accumulate(map(len, pieces), initial=0)]
