"""Which sentences are chosen, and how sure that is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rag.passages import BLOCKS, LOCKS, passage
from tripod.documents import Passage
from tripod.rag.answer import Answer
from tripod.rag.extractive import Evidence, candidates, confidence, extract, quoted
from tripod.rag.terms import question_terms, stem, terms


def chosen(question: str, *passages: Passage) -> list[str]:
    weights = dict.fromkeys(question_terms(question), 1.0)
    found = extract(question, candidates(passages), weights, known=frozenset(weights))
    return [quote.text for quote in found.quotes] if found is not None else []


def test_the_sentence_that_shares_the_question_wins() -> None:
    assert chosen("When is a block freed?", LOCKS, BLOCKS)[0] == "A block is freed when its last request ends."


def test_a_definition_is_preferred_where_one_is_asked_for() -> None:
    text = "People speak of a monad and its monad laws. A monad is a monoid in the category of endofunctors. Every monad has a unit."
    assert chosen("What is a monad?", passage(text))[0].startswith("A monad is a monoid")


def test_the_sentence_that_goes_on_from_the_best_comes_with_it() -> None:
    text = "The suite may raise an exception. If it returns true, the exception is suppressed. Otherwise, it is raised again. Red is red."
    assert chosen("When is an exception suppressed?", passage(text)) == [
        "If it returns true, the exception is suppressed.",
        "Otherwise, it is raised again.",
    ]


def test_code_headings_and_fragments_are_never_chosen() -> None:
    text = "Suppress exceptions\n===================\n\n>>> suppress(exceptions)\n\nsuppress(exceptions)\n\nand suppress exceptions so"
    assert chosen("How do I suppress exceptions?", passage(text)) == []


def test_a_sentence_that_the_splitter_cut_is_not_chosen() -> None:
    assert chosen("When is it freed?", passage("freed() is what is called when it is freed. It is freed late in life.")) == [
        "It is freed late in life."
    ]


@pytest.mark.parametrize(
    "words",
    [
        "suppress suppresses suppressed suppressing suppression",
        "close closes closed closing",
        "copy copies copied copying",
        "evaluate evaluates evaluated evaluating evaluation",
        "assign assigns assigned assignment",
        "run runs running",
        "class classes",
        "box boxes",
    ],
)
def test_the_forms_of_a_word_are_one(words: str) -> None:
    assert len({stem(word) for word in words.split()}) == 1


@pytest.mark.parametrize("words", ["bus business", "thing thin", "sing s", "red re", "import important"])
def test_different_words_stay_apart(words: str) -> None:
    assert len({stem(word) for word in words.split()}) == 2


def test_a_list_in_disguise_is_not_chosen() -> None:
    assert chosen("When is a block freed?", passage(f"A block is freed when {'it or ' * 40}ends. A block is freed late.")) == [
        "A block is freed late."
    ]


def test_notes_of_changes_come_last_unless_the_question_is_about_versions() -> None:
    text = "Changed in version 3: The block is freed when the last request ends. The block is freed when requests end at last."
    assert chosen("When is the block freed?", passage(text))[0].startswith("The block")
    assert chosen("In which version is the block freed when the last request ends?", passage(text))[0].startswith("Changed")


def test_what_says_the_same_twice_is_said_once() -> None:
    text = "A block is freed when its last request ends. A block is freed when its last request has ended. Red is red."
    assert len(chosen("When is a block freed?", passage(text))) == 1


def test_the_function_that_the_question_names_is_preferred() -> None:
    named = passage("Run the tasks and return their results at once.", section="asyncio.tasks.gather")
    other = passage("Run the tasks and return their results at the end.", section="asyncio.tasks.wait", source="b.md")
    assert chosen("How does asyncio.gather run tasks?", other, named)[0].endswith("at once.")
    method = passage("Run the tasks and return their results at once.", section="asyncio.gather", source="b.md")
    about = passage("Use gather of asyncio to run some tasks and return results.", section="asyncio")
    assert chosen("How does asyncio.gather run tasks?", about, method)[0].endswith("at once.")


def test_identifiers_are_taken_apart() -> None:
    assert terms("__exit__ lru_cache TemporaryDirectory HTTPServer") == [
        stem(word) for word in ("exit", "lru", "cache", "temporary", "directory", "http", "server")
    ]


def test_confidence_rises_with_each_piece_of_evidence() -> None:
    little = Evidence(coverage=0.2, context=0.2, known=0.5)
    assert confidence(little) < confidence(Evidence(coverage=0.6, context=0.2, known=0.5))
    assert confidence(little) < confidence(Evidence(coverage=0.2, context=0.6, known=0.5))
    assert confidence(little) < confidence(Evidence(coverage=0.2, context=0.2, known=1.0))
    assert confidence(Evidence(coverage=0.5, context=0.5, known=1.0, similarity=0.1)) < confidence(
        Evidence(coverage=0.5, context=0.5, known=1.0, similarity=0.8)
    )


@given(st.lists(st.text(alphabet=st.sampled_from("Ab. \n-"), min_size=1, max_size=80), min_size=1, max_size=3))
def test_quotations_repeat_the_words_of_their_passages(bodies: list[str]) -> None:
    passages = tuple(passage(body, source=f"{index}.md", start=index * 5) for index, body in enumerate(bodies))
    found = candidates(passages)
    text, citations = quoted(found[:3], passages)
    answer = Answer(question="?", text=text, kind="extractive", citations=citations, passages=passages)
    assert len(answer.citations) == len(found[:3])
    for citation in answer.citations:
        body = bodies[citation.number - 1]
        offset = (citation.number - 1) * 5
        assert body[citation.source_start - offset : citation.source_end - offset] == citation.quote
        assert "".join(answer.text[citation.start : citation.end].split()) == "".join(citation.quote.split())
        assert answer.text[citation.end :].startswith(f"\u201d [{citation.number}]")
