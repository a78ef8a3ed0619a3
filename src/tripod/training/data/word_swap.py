"""Words of a text exchanged for others, on its tokens: whole words, at punctuation too, and nothing else changes its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tripod.errors import ConfigError
from tripod.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Splice:
    """Tokens [start, stop) of a sequence became `ids`."""

    start: int
    stop: int
    ids: tuple[int, ...]
    words: tuple[tuple[str, str], ...]  # what stood there and what stands there now


@dataclass(slots=True, eq=False)
class WordSwap:
    """Exchanges words, all at once, so that `{he: she, she: he}` swaps the two.

    A word ends where a letter or digit has none beside it: "he" is found in "(he)," and "_he_", not in "the" or "he2". Where
    `keeps_case`, "He" and "HE" are found too and become "She" and "SHE".
    """

    words: Mapping[str, str]
    tokenizer: Tokenizer
    keeps_case: bool = True
    _pattern: re.Pattern[str] = field(init=False)
    _table: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._table = {self._key(word): replacement for word, replacement in self.words.items()}
        longest_first = sorted(self.words, key=len, reverse=True)
        alternatives = "|".join(re.escape(word) for word in longest_first)
        self._pattern = re.compile(rf"(?<![^\W_])(?:{alternatives})(?![^\W_])", re.IGNORECASE if self.keeps_case else 0)

    def replace(self, text: str) -> str:
        """The text after the swap."""
        return self._pattern.sub(lambda match: self._replacement(match[0]), text)

    def splices(self, ids: Sequence[int]) -> list[Splice]:
        """What changes in a sequence of tokens, in order. Special tokens stay, and words do not reach across them.

        Raises:
            ConfigError: the tokenizer cannot write a new word in the middle of a text.
        """
        found: list[Splice] = []
        for start, stop in self._texts(ids):
            found += self._splices_of_text(ids, start, stop)
        return found

    def _texts(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        special = self.tokenizer.special_ids
        start = 0
        for place, token in enumerate(ids):
            if token in special:
                if place > start:
                    yield start, place
                start = place + 1
        if len(ids) > start:
            yield start, len(ids)

    def _splices_of_text(self, ids: Sequence[int], start: int, stop: int) -> Iterator[Splice]:
        pieces = [self.tokenizer.token_bytes(token) for token in ids[start:stop]]
        # Characters may be cut at the edges of a row: their bytes are kept as surrogates.
        text = b"".join(pieces).decode("utf-8", "surrogateescape")
        matches = list(self._pattern.finditer(text))
        if not matches:
            return
        byte_of_char = _byte_offsets(text)
        begins = [0]
        for piece in pieces:
            begins.append(begins[-1] + len(piece))
        place, number = 0, 0
        while number < len(matches):
            match = matches[number]
            while begins[place + 1] <= byte_of_char[match.start()]:
                place += 1
            end = place + 1
            group = []
            while number < len(matches) and (byte_of_char[matches[number].start()] < begins[end]):  # words that share a token go together
                group.append(matches[number])
                while begins[end] < byte_of_char[matches[number].end()]:
                    end += 1
                number += 1
            content, position = b"", begins[place]
            raw = b"".join(pieces[place:end])
            for one in group:
                first, last = byte_of_char[one.start()], byte_of_char[one.end()]
                content += raw[position - begins[place] : first - begins[place]] + self._replacement(one[0]).encode()
                position = last
            content += raw[position - begins[place] :]
            yield Splice(
                start + place,
                start + end,
                self._encode(content, raw),
                tuple((one[0], self._replacement(one[0])) for one in group),
            )
            place = end - 1

    def _encode(self, content: bytes, before: bytes) -> tuple[int, ...]:
        ids = self.tokenizer.encode(content.decode("utf-8", "surrogateescape"), add_special_tokens=False) if _is_text(content) else []
        if b"".join(self.tokenizer.token_bytes(token) for token in ids) != content:
            raise ConfigError(
                f"the tokenizer cannot write {content!r} in the place of {before!r} in the middle of a text; "
                "swap needs a byte-level tokenizer"
            )
        return tuple(ids)

    def _key(self, word: str) -> str:
        return word.lower() if self.keeps_case else word

    def _replacement(self, word: str) -> str:
        replacement = self._table[self._key(word)]
        if not self.keeps_case or word == word.lower():
            return replacement
        if word == word.upper() and len(word) > 1:
            return replacement.upper()
        return replacement[:1].upper() + replacement[1:]


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_offsets(text: str) -> list[int]:
    """Where each character begins in UTF-8, and the end."""
    offsets = [0]
    for char in text:
        code = ord(char)
        width = 1 if code < 0x80 or 0xDC80 <= code <= 0xDCFF else 2 if code < 0x800 else 3 if code < 0x10000 else 4
        offsets.append(offsets[-1] + width)
    return offsets
