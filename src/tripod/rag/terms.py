"""The words that a question is about, in a form in which a document's words can be compared with them."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are as at be because been before being below between both but by can
    could did do does doing done during each few for from further get gets had has have having he her here hers him his how i if in
    into is it its itself just let like made make makes many may me might mine more most much must my name named no nor not of off
    on once one only or other our out over own s same say says shall she should so some such t tell than that the their them then
    there these they this those through to too under until up upon us use used uses using very was we were what when where whether
    which while who whom whose why will with within without would you your
    """.split()  # noqa: SIM905 - a paragraph of words reads better than a column of strings
)


def terms(text: str) -> list[str]:
    """Stems of the words in order; `__exit__`, `lru_cache` and `TemporaryDirectory` are taken apart into theirs."""
    return [stem(part.casefold()) for word in _WORD.findall(text) for part in _CAMEL.split(word)]


def question_terms(question: str) -> dict[str, str]:
    """What the question is about: each stem with the word as it was asked. Function words are left out, unless nothing else is there."""
    words = [part for word in _WORD.findall(question) for part in _CAMEL.split(word)]
    content = [word for word in words if word.casefold() not in _STOP_WORDS]
    return {stem(word.casefold()): word for word in reversed(content or words)}


def stem(word: str) -> str:
    """A lower-case word without its commonest English endings: suppress, suppresses, suppressed, suppressing, suppression are one."""
    if len(word) <= 3 or not word.isascii():
        return word
    word = _without_plural(word)
    for ending, shortest in (("ation", 4), ("ion", 4), ("ment", 5), ("ing", 3), ("ed", 3), ("ly", 4)):
        rest = word[: -len(ending)]
        if word.endswith(ending) and len(rest) >= shortest and re.search("[aeiouy]", rest):
            word = rest + "at" if ending == "ation" else rest
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    if word.endswith("i") and len(word) > 3:
        word = word[:-1] + "y"
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


def _without_plural(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
