"""Citations by construction: a grammar that admits only numbers that were given, and only words of the passages between quotation marks.

The language is small, so that nothing in it can be read in two ways:

    The file is closed [2]. The manual says "closed at the end of the block" [1]. Both hold [1][2].

A sentence holds neither brackets nor quotation marks, so every number and every mark in an answer is the grammar's. What a model writes by
it is read by `read`, which refuses whatever the grammar would not have allowed: with the grammar switched off, that is nearly everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from tripod.documents import Passage
from tripod.errors import CitationError, ConfigError
from tripod.rag.answer import Citation, support
from tripod.rag.prompts import ABSTENTION
from tripod.sampling import Grammar

Style: TypeAlias = Literal["statements", "quotations"]
Given: TypeAlias = Mapping[int, Passage]  # number -> passage; the numbers need not be consecutive

MAX_WORDS = 60  # of a statement before its citation
_MAX_MARKERS = 3  # of one statement
_NEVER = (
    r"\[\]［］【】" + '"`´“”„‟‘‚‛«»‹›「」『』〝〞〟＂⟦⟧'
)  # in a statement: brackets and quotation marks. Apostrophes stand between letters
_PAIRS = (('"', '"'), ("<", ">"), ("{", "}"), ("|", "|"), ("~", "~"), ("^", "^"))  # of one byte each


@dataclass(frozen=True, slots=True, kw_only=True)
class Construction:
    """How an answer over some passages must be written.

    Args:
        given: the passages by number.
        style: "statements" may quote; "quotations" says nothing in a model's own words.
        max_statements: sentences or quotations, at least 1.
        may_abstain: whether the answer may be that the passages do not answer the question.

    Raises:
        ConfigError: no passage, a number below 1, or no statement.
    """

    given: Given
    style: Style = "statements"
    max_statements: int = 4
    may_abstain: bool = True

    def __post_init__(self) -> None:
        if not self.given or min(self.given) < 1:
            raise ConfigError(f"an answer cites passages by numbers from 1 on; the numbers given are {sorted(self.given)}")
        if self.max_statements < 1:
            raise ConfigError(f"max_statements={self.max_statements} allows no answer; give at least 1")

    @staticmethod
    def of(passages: Sequence[Passage], style: Style = "statements", *, max_statements: int = 4) -> Construction:
        """Over passages numbered from 1 on."""
        return Construction(given=dict(enumerate(passages, start=1)), style=style, max_statements=max_statements)

    @property
    def marks(self) -> tuple[str, str]:
        """The opening and the closing quotation mark that the model writes: the usual ones, or a pair that stands in no passage.

        Where all stand in some passage, words on both sides of one are not quoted in one piece.
        """
        texts = [passage.text for passage in self.given.values()]
        return next((pair for pair in _PAIRS if not any(mark in text for mark in pair for text in texts)), _PAIRS[0])

    @property
    def grammar(self) -> Grammar:
        """What the engine enforces.

        Raises:
            RequestError: the passages are too long for a grammar (65,536 characters with their escapes); give fewer.
        """
        opening, closing = self.marks
        numbers = "|".join(map(str, self.given))
        unmarked = f"[^{re.escape(opening)}{re.escape(closing)}]"
        rules = [
            f"start: {'ABSTENTION | ' if self.may_abstain else ''}unit (SPACE unit){{0,{self.max_statements - 1}}}",
            f"ABSTENTION: {json.dumps(ABSTENTION)}",
            'SPACE: " "',
        ]
        for number, passage in self.given.items():
            words = json.dumps(passage.text, ensure_ascii=False)
            rules.append(f'WORDS_{number}: %regex {{ "substring_words": {words} }}')
            rules.append(f"QUOTABLE_{number}: WORDS_{number} & /{unmarked}*[\\p{{L}}\\p{{N}}]{unmarked}*/")
            rules.append(f"QUOTATION_{number}: {_text(opening)} QUOTABLE_{number} {_text(f'{closing} [{number}].')}")
        quotations = " | ".join(f"QUOTATION_{number}" for number in self.given)
        if self.style == "quotations":
            rules.append(f"unit: {quotations}")
        else:
            # A claim ends with its space, and what may follow begins with one byte that no claim holds: so it is known where it ends
            # when it does, and nothing is followed in two ways at once.
            word = rf"(?:[^{_NEVER}{opening}'’\s\p{{Cc}}]|[\p{{L}}\p{{N}}]['’]\p{{L}})+"
            rules.append(rf"CLAIM: /{word}(?: {word}){{0,{MAX_WORDS - 1}}} /")
            rules.append(rf"MARKERS: /(?:\[(?:{numbers})\]){{1,{_MAX_MARKERS}}}\./")
            rules.append("unit: CLAIM MARKERS | CLAIM? quotation")
            rules.append(f"quotation: {quotations}")
        return Grammar.ebnf("\n".join(rules) + "\n")

    def shower(self) -> Callable[[str], str]:
        """A function that turns what the model wrote, piece by piece, into what a reader is shown: “ and ”, character for character."""
        opening, closing = self.marks
        is_open = False

        def shown(piece: str) -> str:
            nonlocal is_open
            characters = []
            for character in piece:
                if character == (closing if is_open else opening):
                    character = "”" if is_open else "“"
                    is_open = not is_open
                characters.append(character)
            return "".join(characters)

        return shown


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says. `text`, for a reader, is empty if the model abstained, or was cut before its first statement ended."""

    text: str
    citations: tuple[Citation, ...] = ()
    dropped: str = ""  # the beginning of a statement that was cut off before its citation


def read(written: str, construction: Construction, *, is_cut: bool = False) -> Reading:
    """The statements and quotations of an answer that was written by the grammar, each with its place in its passage.

    Args:
        written: the model's text, as it came.
        construction: whose grammar it was written by.
        is_cut: the text was ended by its length. What follows the last whole statement is then left out, as nothing supports it.

    Raises:
        CitationError: the grammar does not allow this text, so it was not in force: a number that was not given, a quotation that its
            passage does not hold, a statement without a citation.
    """
    if construction.may_abstain and written == ABSTENTION:
        return Reading("")
    text = construction.shower()(written)
    unit = _unit(construction.style)
    citations: list[Citation] = []
    end, num_units = 0, 0
    while end < len(written):
        begin = end + 1 if num_units else 0  # one space between two
        found = unit(construction.marks).match(written, begin)
        if found is None or (num_units and written[end] != " ") or num_units == construction.max_statements:
            break
        citations.extend(_citations(found, construction.given, written))
        end, num_units = found.end(), num_units + 1
    if end < len(written) and not is_cut:
        raise CitationError(
            f"the answer is not written as it had to be, from character {end} on: {written[end : end + 80]!r}; {_given(construction)}"
        )
    return Reading(text[:end], tuple(citations), text[end:].lstrip(" "))


def _unit(style: Style) -> Callable[[tuple[str, str]], re.Pattern[str]]:
    return _statement if style == "statements" else _quotation


@lru_cache
def _statement(marks: tuple[str, str]) -> re.Pattern[str]:
    claim = rf"(?P<claim>[^{_NEVER}{re.escape(marks[0])}\s](?:[^{_NEVER}{re.escape(marks[0])}]*[^{_NEVER}{re.escape(marks[0])}\s])?) "
    return re.compile(rf"(?:{claim})?{_quotation(marks).pattern}|{claim.replace('claim', 'marked')}(?P<markers>(?:\[\d+\])+)\.")


@lru_cache
def _quotation(marks: tuple[str, str]) -> re.Pattern[str]:
    opening, closing = re.escape(marks[0]), re.escape(marks[1])
    return re.compile(rf"{opening}(?P<quote>[^{opening}{closing}]+){closing} \[(?P<number>\d+)\]\.")


def _text(text: str) -> str:
    """As a terminal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _citations(found: re.Match[str], given: Given, written: str) -> Iterator[Citation]:
    groups = found.groupdict()
    if groups.get("markers"):
        for digits in dict.fromkeys(re.findall(r"\d+", groups["markers"])):
            yield _support(found.span("marked"), int(digits), given, written)
        return
    number = int(groups["number"])
    if groups.get("claim"):
        yield _support(found.span("claim"), number, given, written)
    passage = _passage(number, given, written)
    place = passage.text.find(groups["quote"])
    if place < 0:
        raise CitationError(f"the answer quotes {groups['quote']!r}, which does not stand in passage {number}, {passage.id}")
    yield support(*found.span("quote"), number, passage, (place, place + len(groups["quote"])), is_quotation=True)


def _support(span: tuple[int, int], number: int, given: Given, written: str) -> Citation:
    passage = _passage(number, given, written)
    return support(*span, number, passage, (0, len(passage.text)), is_quotation=False)


def _passage(number: int, given: Given, written: str) -> Passage:
    if number not in given:
        raise CitationError(f"the answer cites [{number}], but the numbers given are {', '.join(map(str, given))}. The answer: {written!r}")
    return given[number]


def _given(construction: Construction) -> str:
    return f"the numbers given are {', '.join(map(str, construction.given))}, and the quotation marks {' and '.join(construction.marks)}"
