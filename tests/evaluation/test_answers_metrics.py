"""Metrics of one answer. The expected values are worked out by hand, or are those of SQuAD's own script on its own examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripod.documents import Passage
from tripod.evaluation import answers_metrics as metrics
from tripod.rag.answer import Answer, support


def passage(text: str, source: str) -> Passage:
    return Passage(source=source, start=0, end=len(text), text=text)


DOME = passage("The dome closes in strong wind.", "dome")
CAT = passage("The cat sleeps.", "cat")
TEXT = "“The dome closes in strong wind.” [1]\nCats fly [2]"
ANSWER = Answer(
    question="When does the dome close?",
    text=TEXT,
    kind="extractive",
    passages=(DOME, CAT),
    citations=(support(1, 32, 1, DOME, (0, 31), is_quotation=True), support(38, 46, 2, CAT, (0, 15), is_quotation=False)),
)
NONE = Answer(question="?", text="The passages do not answer this question.", kind="abstained")


def test_normalised_as_squad_does() -> None:
    assert metrics.normalized("The  Cat's an \u2014 Apple, a!") == "cats \u2014 apple"


@pytest.mark.parametrize(
    ("text", "golds", "expected"),
    [
        ("the strong wind", ["strong wind"], 1.0),  # articles count for nothing
        ("in strong wind", ["strong wind"], 0.8),  # precision 2/3, recall 1
        ("rain", ["strong wind"], 0.0),
        ("wind wind", ["wind"], 2 / 3),  # a word counts as often as it stands in both
        ("strong gale", ["wind", "strong wind"], 0.5),  # the best of the golds
        ("", [], 1.0),
        ("wind", [], 0.0),
        ("", ["wind"], 0.0),
    ],
)
def test_f1(text: str, golds: list[str], expected: float) -> None:
    assert metrics.f1(text, golds) == pytest.approx(expected)


def test_exact_match_and_containment() -> None:
    assert metrics.exact_match("The Wind!", ["wind"]) == 1.0
    assert metrics.exact_match("strong wind", ["wind"]) == 0.0
    assert metrics.contains("It closes in strong wind.", ["Strong wind"]) == 1.0
    assert metrics.contains("It is windy.", ["wind"]) == 0.0  # whole words
    assert (metrics.contains("", []), metrics.contains("x", [])) == (1.0, 0.0)


def test_rouge_by_hand() -> None:
    # Lin 2004, section 3: "police killed the gunman" against "police kill the gunman" and "the gunman kill police".
    assert metrics.rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert metrics.rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    assert metrics.rouge_n("police kill the gunman", "police killed the gunman", 2) == pytest.approx(1 / 3)
    assert metrics.rouge_n("the gunman kill police", "police killed the gunman", 1) == pytest.approx(3 / 4)


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_a_common_subsequence_is_no_longer_than_the_common_words(first: list[str], second: list[str]) -> None:
    long, short = metrics.rouge_l(" ".join(first), " ".join(second)), metrics.rouge_n(" ".join(first), " ".join(second))
    assert 0.0 <= long <= short <= 1.0
    assert long == metrics.rouge_l(" ".join(second), " ".join(first))


def test_what_is_said_has_no_markers_and_marks() -> None:
    assert metrics.said(ANSWER) == "The dome closes in strong wind.\nCats fly"
    assert metrics.said(NONE) == ""


def test_grounding_is_the_share_of_content_words_that_the_cited_passages_hold() -> None:
    assert metrics.grounding(ANSWER) == pytest.approx(5 / 6)  # dome, close, strong, wind, cat; fly stands nowhere
    assert metrics.grounding(NONE) == 1.0


def test_citations_are_judged_by_source_or_by_what_they_hold() -> None:
    assert metrics.citation_precision(ANSWER, ["strong wind"]) == 0.5
    assert metrics.citation_precision(ANSWER, [], ["dome", "cat"]) == 1.0
    assert metrics.citation_precision(NONE, ["strong wind"]) is None
    assert metrics.citation_recall(ANSWER, ["strong wind"]) == 1.0
    assert metrics.citation_recall(NONE, ["strong wind"]) is None


def test_context_is_judged_by_rank() -> None:
    assert metrics.context_precision([CAT, DOME], ["strong wind"]) == 0.5
    assert metrics.context_precision([DOME, CAT], ["strong wind"]) == 1.0
    assert metrics.context_precision([DOME, CAT, DOME], ["strong wind"]) == (1 / 1 + 2 / 3) / 2
    assert metrics.context_precision([CAT], ["strong wind"]) == 0.0
    assert metrics.context_recall([CAT], ["strong wind"]) == 0.0
    assert metrics.context_recall([DOME, CAT], [], ["dome", "moon"]) == 0.5
