"""An answer without a language model: the sentences of the passages that answer best, quoted and cited, or none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tripod.documents import Passage
from tripod.rag.answer import Citation, support
from tripod.rag.sentences import sentences
from tripod.rag.terms import question_terms, terms

MAX_QUOTES = 3
_MAX_WORDS = 70  # a longer sentence is a list in disguise


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sentence that may be quoted: `passages[number - 1].text[start:end]`."""

    number: int
    start: int
    end: int
    block: int
    position: int  # counts the sentences of its passage
    text: str  # on one line
    terms: frozenset[str]
    section: str
    heading: frozenset[str]  # terms of its section and its file
    context: frozenset[str]  # these and the terms of its passage


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a question is believed to be answered; every number lies between 0 and 1."""

    coverage: float  # of the question's weight, the share that the best sentence holds
    context: float  # the same of its passage, section and file
    known: float  # the same of the whole index: 0.6 says that words with 40 % of the weight occur nowhere in it
    similarity: float | None = None  # cosine of question and best sentence; None without an embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """The chosen sentences, best passage first, in reading order within a passage."""

    quotes: tuple[Candidate, ...]
    evidence: Evidence
    confidence: float


def candidates(passages: Sequence[Passage]) -> list[Candidate]:
    """The whole sentences of the passages; headings, code, signatures and fragments are not among them."""
    found: list[Candidate] = []
    seen: set[str] = set()
    for number, passage in enumerate(passages, start=1):
        heading = frozenset(terms(f"{passage.source} {passage.section}"))
        context = heading.union(terms(passage.text))
        for position, sentence in enumerate(sentences(passage.text)):
            text = _one_line(passage.text[sentence.start : sentence.end])
            words = text.count(" ") + 1
            # A passage may begin inside a sentence; then its first words only look like one.
            is_cut = position == 0 and passage.start > 0 and text[0].islower()
            if sentence.is_whole and not is_cut and 3 <= words <= _MAX_WORDS and text not in seen:
                seen.add(text)
                found.append(
                    Candidate(
                        number=number,
                        start=sentence.start,
                        end=sentence.end,
                        block=sentence.block,
                        position=position,
                        text=text,
                        terms=frozenset(terms(text)),
                        section=passage.section,
                        heading=heading,
                        context=context,
                    )
                )
    return found


def _one_line(text: str) -> str:
    """A hard-wrapped sentence as it is read; a word that was broken after its hyphen is whole again."""
    return " ".join(re.sub(r"(?<=[a-z]-)\n\s*(?=[a-z])", "", text).split())


def extract(
    question: str,
    found: Sequence[Candidate],
    weights: Mapping[str, float],
    *,
    known: frozenset[str],
    similarities: Sequence[float] | None = None,
) -> Extract | None:
    """The one to three candidates that answer the question best; None where there is no candidate.

    Args:
        question: as it was asked.
        found: from `candidates`.
        weights: for each of `question_terms(question)` how telling it is, such as its inverse document frequency.
        known: those of them that occur in the index at all.
        similarities: cosine of the question and each candidate, where an embedder is at hand.
    """
    if not found:
        return None
    asked = question_terms(question)
    total = sum(weights[term] for term in asked) or 1.0

    def share(held: frozenset[str]) -> float:
        return sum(weights[term] for term in asked if term in held) / total

    # The function that the question names is what its documentation speaks about, without saying its name in every sentence.
    held = [candidate.terms | candidate.heading if _is_named(question, candidate) else candidate.terms for candidate in found]
    scores = [
        _score(
            question,
            candidate,
            _COVERAGE * share(held[index]) + _CONTEXT * share(candidate.context) + _HEADING * share(candidate.heading),
            similarities[index] if similarities is not None else 0.0,
        )
        for index, candidate in enumerate(found)
    ]
    order = sorted(range(len(found)), key=lambda index: -scores[index])
    best = order[0]
    evidence = Evidence(
        coverage=share(held[best]),
        context=share(found[best].context),
        known=share(known),
        similarity=None if similarities is None else max(0.0, similarities[best]),
    )
    chosen = _choose(found, scores, order, frozenset(asked))
    return Extract(
        quotes=tuple(found[index] for index in chosen),
        evidence=evidence,
        confidence=confidence(evidence),
    )


# How the parts of a sentence's score are weighed; chosen on the tuning half of benchmarks/abstention.py, by the share of
# answerable questions whose first sentence holds an annotated answer.
_COVERAGE, _CONTEXT, _SIMILARITY, _RANK, _SHAPE = 1.0, 0.4, 1.0, 0.1, 0.25
_NAMED = 0.2  # the documentation of just the function or class that the question names
_HEADING = 0.15  # a section that is named after what was asked; by eye, on the documentation of Python


_PRIVATE = re.compile(r"(?:^|\.)_(?!_)\w+")  # a name of source code with one leading underscore
_ASIDE = re.compile(
    r"\W*(?:(?:new|added|changed|deprecated|removed)\s+(?:in|since)\s+(?:version\s+)?\d|"
    r"see\s+(?:also|section|the\s+documentation)\b|for\s+more\s+information\b)",
    re.IGNORECASE,
)


def _score(question: str, candidate: Candidate, overlap: float, similarity: float) -> float:
    score = overlap + _SIMILARITY * similarity + _RANK / candidate.number
    words = candidate.text.count(" ") + 1
    length = min(1.0, words / 8) * min(1.0, 45 / words)
    if candidate.text[-1].isalnum() and not _DEFINITION.match(question):
        score *= 0.8  # the title line of a docstring names its object; it rarely explains
    if _PRIVATE.search(candidate.section):
        score *= 0.85  # written for those who maintain it
    if _ASIDE.match(candidate.text) and "version" not in question.casefold():
        score *= 0.6  # what became different speaks to a reader who knows the rest, and a reference to other places answers nobody
    return score * (0.6 + 0.4 * length) + _SHAPE * _has_shape(question, candidate.text) + _NAMED * _is_named(question, candidate)


_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand|million|billion|half|twice|dozen)\b", re.IGNORECASE
)
_SHAPES: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    (re.compile(r"\bhow (?:many|much|long|old|far|big|large|high)\b", re.IGNORECASE), _NUMBER),
    (
        re.compile(r"\b(?:when|what year|which year|what date|in what year)\b", re.IGNORECASE),
        re.compile(r"\d{2,}|\bwhen\b|\bafter\b|\bbefore\b|\bcentury\b"),
    ),
    (re.compile(r"\b(?:who|whom|whose)\b", re.IGNORECASE), re.compile(r"(?<=\s)[A-Z][a-z]+")),
    (re.compile(r"\bwhere\b", re.IGNORECASE), re.compile(r"\b(?:in|at|on|near|from|into|under)\b")),
    (
        re.compile(r"\bwhy\b", re.IGNORECASE),
        re.compile(r"\b(?:because|since|due to|so that|in order to|therefore|reason)\b", re.IGNORECASE),
    ),
    (
        re.compile(r"\bhow (?:do|does|can|could|to|is|are|should)\b", re.IGNORECASE),
        re.compile(r"\b(?:by|if|using|must|should|can be|to|via|through|when)\b"),
    ),
)
_DEFINITION = re.compile(r"^\s*what(?:'s| is| are| was| were)\s+(?:an?\s+|the\s+)?(?P<thing>[^?]{2,60}?)\s*\??\s*$", re.IGNORECASE)


def _has_shape(question: str, sentence: str) -> float:
    """Whether a sentence looks like an answer to this kind of question: 0, 1, or 2 for a definition of what was asked about."""
    definition = _DEFINITION.match(question)
    if definition is not None:
        thing = r"\W+".join(re.escape(word) for word in re.findall(r"\w+", definition["thing"]))
        defines = rf"^\W*(?:an?\s+|the\s+)?\W*{thing}\w{{0,2}}\W*(?:\([^)]*\)\W*)?(?:is|are|was|were|means|refers?|denotes?)\b"
        return 2.0 if re.search(defines, sentence, re.IGNORECASE) else 0.0
    return float(any(asks.search(question) and shape.search(sentence) for asks, shape in _SHAPES))


_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+|\w*[a-z0-9]_\w+|[a-z]+[A-Z]\w*|[A-Z][a-z0-9]+[A-Z]\w*")


def _is_named(question: str, candidate: Candidate) -> float:
    """Whether the question names what a section of source code documents: `asyncio.gather` is `asyncio.tasks.gather`.

    0, 1, or 2 for the first sentence, which is to sum up the rest (PEP 257).
    """
    path = candidate.section.partition(" ")[0].split(".")
    names = [name.split(".") for name in _NAME.findall(question)]
    if not any(name[-1] == path[-1] and set(name) <= set(path) for name in names):
        return 0.0
    return 2.0 if candidate.position == 0 else 1.0


_GOES_ON = re.compile(
    r"(?:Otherwise|However|Thus|Therefore|Then|If not|In this case|In that case|This means|It |They |This |These |Instead|Also)\b"
)


def _choose(found: Sequence[Candidate], scores: Sequence[float], order: Sequence[int], asked: frozenset[str]) -> list[int]:
    """The best sentence, the one that goes on from it, and others that are nearly as good and say something else."""
    best = order[0]
    chosen = [best]
    follower = best + 1
    if follower < len(found) and _follows(found[best], found[follower]) and _GOES_ON.match(found[follower].text):
        chosen.append(follower)
    for index in order[1:]:
        bar = 0.85 if found[index].number == found[best].number else 0.92
        if len(chosen) == MAX_QUOTES or scores[index] < 0.85 * scores[best]:
            break
        if scores[index] < bar * scores[best]:
            continue
        held = frozenset[str]().union(*(found[other].terms for other in chosen))
        overlap = max(_overlap(found[index].terms, found[other].terms) for other in chosen)
        if (
            index not in chosen
            and overlap < 0.6
            and (asked & found[index].terms)
            and (not asked <= held or scores[index] > 0.93 * scores[best])
        ):
            chosen.append(index)
    return sorted(chosen, key=lambda index: (found[index].number != found[best].number, found[index].number, found[index].start))


def _follows(before: Candidate, after: Candidate) -> bool:
    return after.number == before.number and after.block == before.block and after.position == before.position + 1


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / (min(len(first), len(second)) or 1)


# Logistic regression of "the passages answer the question", fitted on the tuning half of benchmarks/abstention.py (answerable questions
# against questions about articles that are not in the index) and reported on the other half. The pieces of evidence go together, so
# another sample of questions moves weight from one to the other and leaves the ranking as it is.
_LEXICAL = {"bias": -8.4, "coverage": 8.0, "context": 5.1, "known": 3.4}
_WITH_SIMILARITY = {"bias": -10.9, "coverage": 3.7, "context": 4.6, "known": 2.0, "similarity": 13.1}
THRESHOLD = 0.5


def confidence(evidence: Evidence) -> float:
    """How likely the passages answer the question, from 0 to 1; below `THRESHOLD` the answer is to abstain."""
    weights = _LEXICAL if evidence.similarity is None else _WITH_SIMILARITY
    logit = (
        weights["bias"]
        + weights["coverage"] * evidence.coverage
        + weights["context"] * evidence.context
        + weights["known"] * evidence.known
    )
    if evidence.similarity is not None:
        logit += weights["similarity"] * evidence.similarity
    return 1.0 / (1.0 + math.exp(-logit))


def quoted(quotes: Sequence[Candidate], passages: Sequence[Passage]) -> tuple[str, tuple[Citation, ...]]:
    """The text of an extractive answer: each sentence between quotation marks with its number, and its citations.

    A quotation is laid out on one line; its citation points to the words as they stand in the source.
    """
    text = ""
    citations: list[Citation] = []
    for quote in quotes:
        passage = passages[quote.number - 1]
        text += ("\n" if text else "") + "\u201c"
        span = (quote.start, quote.end)
        citations.append(support(len(text), len(text) + len(quote.text), quote.number, passage, span, is_quotation=True))
        text += f"{quote.text}\u201d [{quote.number}]"
    return text, tuple(citations)
