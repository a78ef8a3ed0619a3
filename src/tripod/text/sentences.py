"""Where the sentences of prose end: exact offsets, and an eye for abbreviations, initials and numbered items."""

from __future__ import annotations

import re
from collections.abc import Iterator

STOP = re.compile(r"""[.!?]+["'\u201d\u2019)\]*`]*(?=\s|$)|[\u3002\uff01\uff1f]""")
OPENING = re.compile(
    r"""["'\u201c\u2018(\[*`_]*(?:[A-Z0-9\u00c0-\u00de\u4e00-\u9fff]|"""
    r"""[a-z_][\w.]*\(|["`\u201c]\w|[a-z]+_\w)"""
)
_ABBREVIATIONS = frozenset(
    """
    e.g i.e etc vs cf fig figs eq no nos dr mr mrs ms prof st jr sr inc ltd co corp approx resp viz al ca vol pp p ch sec ed eds
    dept est gen gov hon col lt capt sgt rev u.s u.k u.n d.c a.m p.m b.c a.d ph.d jan feb mar apr jun jul aug sep sept oct nov
    dec
    """.split()  # noqa: SIM905 - a paragraph of words reads better than a column of strings
)
# These may also end a sentence, which shows by what follows.
_MAY_END = frozenset(
    """
    etc al inc ltd co corp a.m p.m u.s u.k u.n d.c b.c a.d ph.d jr sr
    """.split()  # noqa: SIM905 - a paragraph of words reads better than a column of strings
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The sentences of running text such as an answer, where every line is prose; a blank line or a bullet ends one."""
    spans: list[tuple[int, int]] = []
    for match in re.finditer(r"\S.*?(?=\n\s*\n|\n\s*(?:[-*+\u2022]|\d{1,3}[.)])\s|\Z)", text, re.DOTALL):
        spans.extend(split_prose(text, match.start(), match.end()))
    return spans


def split_prose(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sentences of the prose in text[start:end], without white space around them; together they hold all other characters."""
    begin = start
    for stop in STOP.finditer(text, start, end):
        if stop.start() < begin or not _ends_sentence(text, begin, stop, end):
            continue
        yield begin, stop.end()
        begin = stop.end()
        while begin < end and text[begin].isspace():
            begin += 1
    while end > begin and text[end - 1].isspace():
        end -= 1
    if begin < end:
        yield begin, end


def _ends_sentence(text: str, begin: int, stop: re.Match[str], end: int) -> bool:
    after = re.compile(r"\s*").match(text, stop.end(), end)
    following = after.end() if after else stop.end()
    if following >= end:
        return True
    opens = OPENING.match(text, following, end) is not None
    if not stop[0].startswith("."):
        return opens
    word = re.search(r"[\w.]*$", text[max(begin, stop.start() - 24) : stop.start()])
    last = word[0].casefold() if word else ""
    if stop[0].startswith("..") or last in _MAY_END:
        return opens and text[following].isupper()
    if last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i" and word is not None and word[0].isupper()):
        return False
    # "1. The context expression": the number of a list item that shares its line
    return opens and not (last.isdigit() and stop.start() - begin == len(last))
