"""A question to an FTS5 expression: distinct words, quoted, joined by OR; nothing in a question can be taken for syntax."""

from __future__ import annotations

import re

from tripod.errors import RequestError

_WORD = re.compile(r"\w+")
_MENTIONED = re.compile(r"`([^`]+)`|\"([^\"]+)\"|“([^”]+)”")
MAX_TERMS = 1000  # distinct words; SQLite refuses expressions of several thousand

# Words that join (Lucene's English list) and words that ask, which describe nothing that could stand in an answer. Without
# them a query is two to three times faster, and on Cranfield BM25 is better by 0.008 nDCG@10 (`docs/decisions/0002-fusion.md`).
STOP_WORDS = frozenset(
    """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was
    will with
    what which who whom whose when where why how do does did can could should would may might must am were been being has
    have had i me my we us our you your he him his she her its them
    """.split()  # noqa: SIM905 - a list of words is read as words
)


def terms(question: str) -> list[str]:
    """The distinct words to look for, in order, without stop words.

    A stop word in quotation marks or backticks is meant, not used: what does `with` do? So is one in a question of
    nothing but stop words: to be or not to be.

    Raises:
        RequestError: more than `MAX_TERMS` different words.
    """
    words = list(dict.fromkeys(_WORD.findall(question.lower())))
    if len(words) > MAX_TERMS:
        raise RequestError(f"the query has {len(words)} different words, and at most {MAX_TERMS} can be looked for; shorten it", param="q")
    mentioned = {word for groups in _MENTIONED.findall(question.lower()) for word in _WORD.findall(" ".join(groups))}
    return [word for word in words if word not in STOP_WORDS or word in mentioned] or words


def expression(words: list[str]) -> str:
    """The FTS5 expression that any of the words satisfies."""
    return " OR ".join(f'"{word}"' for word in words)  # \w holds no quotation mark, so none can end the string
