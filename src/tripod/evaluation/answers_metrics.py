"""How good one answer is: exact match, F1, ROUGE, grounding, citations, context. Each is between 0 and 1, and a larger value is better."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence

from tripod.documents import Passage
from tripod.rag.answer import Answer
from tripod.rag.terms import question_terms, terms

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
_MARKER = re.compile(r"\s*\[\d+\]")
_QUOTES = str.maketrans("", "", "“”„«»")


def normalized(text: str) -> str:
    """As SQuAD's own script compares: lower case, without punctuation, articles and extra white space (Rajpurkar et al. 2016)."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def said(answer: Answer) -> str:
    """What an answer says, without the numbers of its passages and its quotation marks; empty where it abstains."""
    return "" if answer.kind == "abstained" else _MARKER.sub("", answer.text).translate(_QUOTES).strip()


def exact_match(text: str, golds: Sequence[str]) -> float:
    """1 if the text is one of the golds, normalised. Without golds (no answer is right) 1 if there is no text."""
    return float(any(normalized(text) == normalized(gold) for gold in golds or [""]))


def f1(text: str, golds: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of normalised words (SQuAD's F1). Without golds 1 if there is no text."""
    return max(_f1(normalized(text).split(), normalized(gold).split()) for gold in golds or [""])


def contains(text: str, golds: Sequence[str]) -> float:
    """1 if a gold stands in the text as whole words, normalised: for answers in sentences. Without golds 1 if there is no text."""
    if not golds:
        return float(not text)
    padded = f" {normalized(text)} "
    return float(any(f" {normalized(gold)} " in padded for gold in golds if normalized(gold)))


def rouge_n(text: str, gold: str, n: int = 1) -> float:
    """F1 of n-grams of lower-case letters and digits (Lin 2004), without stemming."""
    return _f1(_ngrams(_words(text), n), _ngrams(_words(gold), n))


def rouge_l(text: str, gold: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004; the sentence-level form), without stemming."""
    first, second = _words(text), _words(gold)
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for position, other in enumerate(second, start=1):
            diagonal, row[position] = row[position], diagonal + 1 if word == other else max(row[position], row[position - 1])
    return _harmonic(row[-1], len(first), len(second))


def grounding(answer: Answer) -> float:
    """The share of the answer's content words, by stem, that stand in the passages it cites: faithfulness without a judge.

    It cannot see a negation or a swapped name; what it finds ungrounded is ungrounded. 1 where the answer abstains.
    """
    told = set(question_terms(said(answer))) if said(answer) else set()
    cited = {passage_term for citation in answer.citations for passage_term in terms(citation.passage.text)}
    return len(told & cited) / len(told) if told else 1.0


def citation_precision(answer: Answer, golds: Sequence[str], sources: Collection[str] = ()) -> float | None:
    """The share of the citations that point to a relevant passage; None where the answer cites nothing."""
    hits = [is_relevant(citation.passage, golds, sources) for citation in answer.citations]
    return sum(hits) / len(hits) if hits else None


def citation_recall(answer: Answer, golds: Sequence[str], sources: Collection[str] = ()) -> float | None:
    """The share of the relevant passages that were given and are cited; None where none was given."""
    relevant = {passage.id for passage in answer.passages if is_relevant(passage, golds, sources)}
    cited = {citation.passage.id for citation in answer.citations}
    return len(relevant & cited) / len(relevant) if relevant else None


def context_precision(passages: Sequence[Passage], golds: Sequence[str], sources: Collection[str] = ()) -> float:
    """Average precision of the passages that were given, in their order: 1 where all relevant ones stand first, 0 where there is none."""
    precisions: list[float] = []
    for rank, passage in enumerate(passages, start=1):
        if is_relevant(passage, golds, sources):
            precisions.append((len(precisions) + 1) / rank)
    return sum(precisions) / len(precisions) if precisions else 0.0


def context_recall(passages: Sequence[Passage], golds: Sequence[str], sources: Collection[str] = ()) -> float:
    """The share of the relevant sources among the passages that were given; without named sources, whether any holds a gold."""
    if sources:
        return len({passage.source for passage in passages} & set(sources)) / len(set(sources))
    return float(any(is_relevant(passage, golds, sources) for passage in passages))


def is_relevant(passage: Passage, golds: Sequence[str], sources: Collection[str] = ()) -> bool:
    """Whether a passage is of a relevant source; where none is named, whether it holds one of the golds."""
    if sources:
        return passage.source in sources
    return bool(golds) and contains(passage.text, golds) == 1.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _ngrams(words: Sequence[str], n: int) -> list[str]:
    return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]


def _f1(first: Sequence[str], second: Sequence[str]) -> float:
    return _harmonic(sum((Counter(first) & Counter(second)).values()), len(first), len(second))


def _harmonic(common: int, num_first: int, num_second: int) -> float:
    if not num_first or not num_second:
        return float(num_first == num_second)
    return 2 * common / (num_first + num_second)
