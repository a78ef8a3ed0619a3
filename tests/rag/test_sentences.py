"""What counts as a sentence of documentation."""

from __future__ import annotations

import pydoc_data.topics

from hypothesis import given
from hypothesis import strategies as st

from tripod.rag.sentences import sentence_spans, sentences


def found(text: str) -> list[str]:
    return [" ".join(text[sentence.start : sentence.end].split()) for sentence in sentences(text)]


def whole(text: str) -> list[str]:
    return [" ".join(text[sentence.start : sentence.end].split()) for sentence in sentences(text) if sentence.is_whole]


def test_a_paragraph_is_cut_at_its_stops() -> None:
    assert found("Blocks are freed. Is that all? It is!") == ["Blocks are freed.", "Is that all?", "It is!"]


def test_abbreviations_initials_and_decimals_end_nothing() -> None:
    text = "It stops, i.e. Nothing runs, e.g. A loop. Dr. Smith and J. Doe paid 3.50 dollars. See fig. 4 of Knuth et al. and go on."
    assert found(text) == [
        "It stops, i.e. Nothing runs, e.g. A loop.",
        "Dr. Smith and J. Doe paid 3.50 dollars.",
        "See fig. 4 of Knuth et al. and go on.",
    ]


def test_an_abbreviation_may_also_end_a_sentence() -> None:
    assert found("Files, sockets, etc. The rest follows.") == ["Files, sockets, etc.", "The rest follows."]


def test_a_stop_inside_quotation_marks_or_parentheses_belongs_to_its_sentence() -> None:
    assert found('He said "stop." (Nobody heard.) They left.') == ['He said "stop."', "(Nobody heard.)", "They left."]


def test_names_of_files_and_attributes_hold_no_end() -> None:
    assert found("Read os.path and a.txt first. Then run.") == ["Read os.path and a.txt first.", "Then run."]


def test_a_sentence_may_begin_with_a_call() -> None:
    assert found("It opens. open() returns a file. `close` ends it.") == ["It opens.", "open() returns a file.", "`close` ends it."]


def test_headings_of_every_markup_are_left_out() -> None:
    text = "Title of it\n===========\n\n*****\nOther\n*****\n\n# Heading\n\nSome text stands here.\n\n## More\nAnd text stands there."
    assert found(text) == ["Some text stands here.", "And text stands there."]


def test_code_is_left_out() -> None:
    text = (
        "First sentence here.\n\n```python\nx = 1. Not prose.\n```\n\nIt is shown below::\n\n    Literal block. Not prose.\n\n"
        "Last sentence here.\n\n"
        ">>> run()\n'Output. Of it.'\n\n.. code-block:: python\n\n   Body of it. Also code.\n\nThe end is here."
    )
    assert found(text) == ["First sentence here.", "It is shown below::", "Last sentence here.", "The end is here."]


def test_signatures_and_definitions_of_grammar_are_left_out() -> None:
    text = 'object.__exit__(self, exc_type, exc_value)\n\n   Exit the context of it.\n\nlambda_expr ::= "lambda" [list]\n'
    assert found(text) == ["Exit the context of it."]


def test_an_item_of_a_list_stands_alone_and_without_its_bullet() -> None:
    text = "There are two:\n\n1. The file is opened.\n   It is read. Then\n   it is closed.\n2. The end is reached.\n- A last one is here."
    assert whole(text) == [
        "The file is opened.",
        "It is read.",
        "Then it is closed.",
        "The end is reached.",
        "A last one is here.",
    ]


def test_fragments_are_not_whole() -> None:
    assert whole("and so it goes.\n\nThe following code:\n\nparameters of it") == []


def test_a_summary_line_without_a_stop_is_whole() -> None:
    assert whole("Context manager to suppress specified exceptions") == ["Context manager to suppress specified exceptions"]


def test_references_to_other_places_are_left_out() -> None:
    text = "Locks are not reentrant.\n\nSee also:\n\n  **PEP 343** - The with statement\n     The specification of it.\n\nGo on then."
    assert found(text) == ["Locks are not reentrant.", "Go on then."]


def test_the_body_of_a_note_is_kept() -> None:
    assert found(".. note::\n\n   Locks are not reentrant.\n\nGo on then.") == ["Locks are not reentrant.", "Go on then."]


def test_the_reference_of_python_yields_its_sentences() -> None:
    text = pydoc_data.topics.topics["context-managers"]
    assert (
        "If an exception is supplied, and the method wishes to suppress the exception (i.e., prevent it from being propagated), "
        "it should return a true value." in whole(text)
    )


@given(st.text(alphabet=st.sampled_from("aB. \n-*`=>:#1)\"'(é\t|"), max_size=200))
def test_sentences_are_ordered_disjoint_and_never_blank(text: str) -> None:
    end = 0
    for sentence in sentences(text):
        assert end <= sentence.start < sentence.end <= len(text)
        assert text[sentence.start : sentence.end] == text[sentence.start : sentence.end].strip()
        end = sentence.end


@given(st.text(alphabet=st.sampled_from('aB. \n-!?[1]"é'), max_size=200))
def test_the_spans_of_running_text_cover_every_word(text: str) -> None:
    covered = {offset for start, end in sentence_spans(text) for offset in range(start, end)}
    assert all(offset in covered for offset, character in enumerate(text) if not character.isspace())
