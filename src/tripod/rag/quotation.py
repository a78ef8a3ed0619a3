"""Finding a quotation in its source, where the two may differ in layout but not in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Quotation marks and the markup of emphasis and code come and go when a sentence is quoted; letters, digits and all other signs do not.
_IGNORED = frozenset("\"'`*\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00b4")
_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2212")
_ELLIPSIS = re.compile(r"\s*(?:\[?\u2026\]?|\[?\.\.\.\]?)\s*")


def find_quotation(quotation: str, text: str) -> tuple[int, int] | None:
    """The stretch of `text` that the quotation repeats, as exact offsets; None where it is not there.

    Runs of white space count as one space, and as none after the hyphen of a word; quotation marks, asterisks and backticks
    count as nothing; the first letter may change its case and a final comma or stop may be the quoting sentence's own. An ellipsis
    stands for left-out text, provided that the pieces occur in their order.
    """
    target = _Folded.of(text)
    whole = _find(quotation, target, 0)
    if whole is not None:
        return whole
    pieces = [piece for piece in _ELLIPSIS.split(quotation) if piece.strip()]
    if len(pieces) < 2 or any(len(piece.split()) < 2 for piece in pieces):
        return None
    found: list[tuple[int, int]] = []
    for piece in pieces:
        span = _find(piece, target, found[-1][1] if found else 0)
        if span is None:
            return None
        found.append(span)
    return found[0][0], found[-1][1]


@dataclass(frozen=True, slots=True)
class _Folded:
    """A text without its layout; `origins[i]` is the offset that the folded character i had."""

    text: str
    origins: tuple[int, ...]

    @staticmethod
    def of(text: str) -> _Folded:
        folded: list[str] = []
        origins: list[int] = []
        for offset, character in enumerate(text):
            if character in _IGNORED:
                continue
            if character.isspace():
                broken_word = folded[-1:] == ["-"] and len(folded) > 1 and folded[-2].isalnum()
                if not folded or folded[-1] == " " or broken_word:
                    continue
                character = " "
            elif character in _DASHES:
                character = "-"
            folded.append(character)
            origins.append(offset)
        return _Folded("".join(folded), tuple(origins))


def _find(quotation: str, target: _Folded, begin: int) -> tuple[int, int] | None:
    wanted = _Folded.of(quotation).text.strip()
    first = next((index for index, origin in enumerate(target.origins) if origin >= begin), len(target.origins))
    spellings = [wanted, wanted.rstrip(".,;:")]
    spellings += [spelling[:1].swapcase() + spelling[1:] for spelling in spellings]
    for spelling in spellings:
        position = _find_words(spelling, target.text, first)
        if position is not None:
            return target.origins[position], target.origins[position + len(spelling) - 1] + 1
    return None


def _find_words(wanted: str, text: str, first: int) -> int | None:
    """The first place where `wanted` stands as whole words: "on" is not quoted from "none"."""
    if not wanted:
        return None
    position = text.find(wanted, first)
    while position >= 0:
        end = position + len(wanted)
        starts_word = position == 0 or not (text[position - 1].isalnum() and wanted[0].isalnum())
        ends_word = end == len(text) or not (text[end].isalnum() and wanted[-1].isalnum())
        if starts_word and ends_word:
            return position
        position = text.find(wanted, position + 1)
    return None
