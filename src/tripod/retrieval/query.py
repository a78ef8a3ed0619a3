"""A question to the distinct words to look for. Nothing in a question can be taken for syntax: a word is letters and digits."""

from __future__ import annotations

import re

from tripod.errors import RequestError
from tripod.retrieval.cjk import asked

_WORD = re.compile(r"\w+")
_MENTIONED = re.compile(r"`([^`]+)`|\"([^\"]+)\"|“([^“”]+)”")
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
    """The distinct words to look for, in order, without stop words; of a run of Chinese, Japanese or Korean, its pairs of characters.

    A stop word in quotation marks or backticks is meant, not used: what does `with` do? So is one in a question of
    nothing but stop words: to be or not to be.

    Raises:
        RequestError: more than `MAX_TERMS` different words.
    """
    return _at_most(list(dict.fromkeys(piece for word in words(question) for piece in asked(word))))


def words(question: str) -> list[str]:
    """The same words, before runs are taken to pieces."""
    found = _at_most(list(dict.fromkeys(_WORD.findall(question.lower()))))
    mentioned = {word for groups in _MENTIONED.findall(question.lower()) for word in _WORD.findall(" ".join(groups))}
    return [word for word in found if word not in STOP_WORDS or word in mentioned] or found


def _at_most(found: list[str]) -> list[str]:
    if len(found) > MAX_TERMS:
        raise RequestError(f"the query has {len(found)} different words, and at most {MAX_TERMS} can be looked for; shorten it", param="q")
    return found
