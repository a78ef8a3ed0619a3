"""A document cut into passages that fit a token budget, each knowing exactly where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tripod.documents import Document, Passage, Section
from tripod.errors import ConfigError
from tripod.text.passages import passages_at, sections_to_cut

# Where a passage may begin, best first. Each match ends where the next passage begins.
_BREAKS = (
    re.compile(r"\n(?=#{1,6}[ \t])|\n(?=[^\s].*\n([=\-~^\"'`*+#:._])\1{2,}[ \t]*(?:\n|\Z))"),  # heading: Markdown, underlined (RST)
    re.compile(r"\n[ \t\r]*\n\s*"),  # paragraph
    re.compile(r"\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])"),  # list item
    re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9À-ÞΑ-ΩА-Я])|[。！？]+[」』”’]*\s*"),  # sentence
    re.compile(r"\n"),  # line
    re.compile(r"\s+"),  # word
)
_FILL = 0.5  # a better kind of break is taken only if it leaves the passage at least this full
_NEARLY = 0.9  # of the budget: near enough to stop measuring

_NON_SPACE = re.compile(r"\S")
_TOKEN = re.compile(r"[A-Za-z]{1,5}|[0-9]{1,2}|[^\sA-Za-z0-9]")


def approximate_tokens(text: str) -> int:
    """About how many tokens an English WordPiece or byte-pair tokenizer makes of `text`: deterministic, and needs no library.

    Rather too many than too few: over whole collections of prose, documentation and markup, 1.05 to 1.3 times the tokens of
    MiniLM's WordPiece; of passages of at most 200 by this estimate, at most one in 200 has more than 254 (a test measures both).
    """
    return len(_TOKEN.findall(text))


def split(document: Document, *, max_tokens: int, count_tokens: Callable[[str], int] = approximate_tokens) -> list[Passage]:
    """Cut a document into passages of at most `max_tokens` tokens, at the best break near the end of each.

    No passage crosses a section. Within one, a passage ends before a heading, at a blank line, before a list item, after a
    sentence, at a line end or at a space, whichever comes first in this order in the second half of what fits; the last
    two passages of a section share what is left. Sentences come before lines because much prose is wrapped by hand.

    Laws: `document.text[p.start:p.end] == p.text`; passages are non-empty, without outer white space, in order, do not
    overlap, cover every other character of the sections, and each fits the budget. A word that alone is too large is cut
    between characters; only a single character may exceed the budget.

    Args:
        document: sections that overlap are cut at each other's borders, the earlier one first.
        max_tokens: at least 1, as `count_tokens` counts.
        count_tokens: tokens of a text. Called a few times a passage, on texts of about a passage's size.

    Returns:
        Passages in order; `section`, `page` and `line` describe the first character. `line` is None for a paged source
        without lines of its own, because its text is extracted.

    Raises:
        ConfigError: max_tokens is below 1.
    """
    check_budget(max_tokens)
    cutter = Cutter(document.text, max_tokens, count_tokens)
    spans = (
        Section(start, end, section.title) for section in sections_to_cut(document) for start, end in cutter.cut(section.start, section.end)
    )
    return passages_at(document, spans)


@dataclass(frozen=True, slots=True)
class Recursive:
    """`split` as a `Splitter`: the default of an index."""

    max_tokens: int
    count_tokens: Callable[[str], int] = approximate_tokens

    def __post_init__(self) -> None:
        check_budget(self.max_tokens)

    @property
    def fingerprint(self) -> str:
        return f"passages of at most {budget(self.max_tokens, self.count_tokens)}"

    def split(self, document: Document) -> list[Passage]:
        return split(document, max_tokens=self.max_tokens, count_tokens=self.count_tokens)


def budget(max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """A budget in words, for a fingerprint."""
    if count_tokens is approximate_tokens:
        return f"{max_tokens} tokens"
    name = getattr(count_tokens, "__qualname__", type(count_tokens).__qualname__)
    return f"{max_tokens} tokens of {getattr(count_tokens, '__module__', '')}.{name}"


def check_budget(max_tokens: int) -> None:
    """
    Raises:
        ConfigError: max_tokens is below 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} leaves no room for a passage; give at least 1")


class Cutter:
    """Cuts spans of one text. Remembers how many characters a token has here, so that the first guess is usually near."""

    def __init__(self, text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> None:
        self.text = text
        self.max_tokens = max_tokens
        self.count_tokens = count_tokens
        self.chars_per_token = 3.0

    def cut(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Spans within [start, end), in order and stripped, that hold all of its characters but white space."""
        while (first := _NON_SPACE.search(self.text, start, end)) is not None:
            start, end = first.start(), self._stripped_end(end)
            fits = self._fitting_end(start, end)
            if fits == end:
                yield start, end
                return
            cut = self._best_break(start, fits, end)
            stop = self._stripped_end(cut)
            while stop != fits and stop - start > 1 and self._count(start, stop) > self.max_tokens:
                # Rare: byte-pair merges reach over borders, so less text can be more tokens.
                cut = stop = self._last_word_end(start, stop - 1) or stop - 1
            yield start, stop
            start = cut

    def _count(self, start: int, end: int) -> int:
        return self.count_tokens(self.text[start:end])

    def _stripped_end(self, end: int) -> int:
        while self.text[end - 1].isspace():
            end -= 1
        return end

    def _fitting_end(self, start: int, end: int) -> int:
        """A measured end of a word within the budget, at least nine tenths of the way to the last such; `end` if all fits.

        Guesses by characters per token, corrects by what was counted, and halves the interval where that does not help.
        """
        fits, exceeds = start, end + 1
        guess = self._guess(start)
        if end - start <= 2 * (guess - start):
            guess = end
        while exceeds - fits > 1:
            candidate = self._last_word_end(fits, guess) if guess < end else end
            if candidate is None:
                candidate = self._next_word_end(guess, min(exceeds, end, start + 4 * (guess - start) + 64))
                if candidate == exceeds:
                    break  # no word ends between what fits and what does not
            num_tokens = self._count(start, candidate)
            self.chars_per_token = (candidate - start) / max(1, num_tokens)
            if num_tokens <= self.max_tokens:
                fits = candidate
                if fits == end:
                    return end
                if num_tokens >= _NEARLY * self.max_tokens:
                    break
            else:
                exceeds = candidate
            guess = self._guess(start)
            if not fits < guess < exceeds:
                guess = (fits + exceeds) // 2
        if fits == start:
            return self._fitting_chars(start, exceeds)
        if end - fits < fits - start and exceeds > end and self._count(start, end) <= self.max_tokens:
            return end
        return fits

    def _guess(self, start: int) -> int:
        return start + max(1, int(0.97 * self.max_tokens * self.chars_per_token))

    def _fitting_chars(self, start: int, exceeds: int) -> int:
        """Not even the first word fits: nearly as many of its characters as do, at least one."""
        fits, guess = start, self._guess(start)
        while exceeds - fits > 1:
            if not fits < guess < exceeds:
                guess = (fits + exceeds) // 2
            num_tokens = self._count(start, guess)
            self.chars_per_token = (guess - start) / max(1, num_tokens)
            if num_tokens > self.max_tokens:
                exceeds = guess
            else:
                fits = guess
                if num_tokens >= _NEARLY * self.max_tokens:
                    break
            guess = self._guess(start)
        return max(fits, start + 1)

    def _is_word_end(self, position: int) -> bool:
        before, after = self.text[position - 1], self.text[position]
        return (
            (after.isspace() and not before.isspace()) or "\u2e80" <= before <= "\u9fff" or "\u2e80" <= after <= "\u9fff"
        )  # CJK: no spaces

    def _last_word_end(self, start: int, position: int) -> int | None:
        """The last end of a word in (start, position]."""
        return next((p for p in range(position, start, -1) if self._is_word_end(p)), None)

    def _next_word_end(self, position: int, limit: int) -> int:
        """The first end of a word in [position, limit), or limit."""
        return next((p for p in range(position, limit) if self._is_word_end(p)), limit)

    def _best_break(self, start: int, fits: int, end: int) -> int:
        """Where the next passage begins, so that this one ends at `fits` or before."""
        if end - fits < fits - start:  # what is left fits two passages: share it
            target, lowest = (start + end) // 2, start + (end - start) * 3 // 10
        else:
            target, lowest = fits, start + int(_FILL * (fits - start))
        for pattern in _BREAKS:
            best: int | None = None
            for match in pattern.finditer(self.text, max(lowest, start + 1), min(len(self.text), fits + 200)):  # lookaheads see past `fits`
                if self._stripped_end(match.end()) > fits:
                    break
                if best is None or abs(match.end() - target) < abs(best - target):
                    best = match.end()
            if best is not None:
                return best
        return fits
