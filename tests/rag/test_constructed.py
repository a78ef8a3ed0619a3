"""The grammar of an answer admits what was given and nothing else; the reader agrees. The judge is a matcher outside of any engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from benchmarks.campaigns import citations as campaign
from benchmarks.campaigns.served_model import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rag.passages import BLOCKS, LOCKS, passage
from tripod.engine.engine import Engine, EngineConfig
from tripod.engine.grammar.compiler import GrammarCompiler
from tripod.engine.grammar.spelling import Spelling
from tripod.errors import CitationError, ConfigError, EngineError, RequestError
from tripod.models.load import load_language_model
from tripod.rag.constructed import Construction, read
from tripod.rag.prompts import ABSTENTION
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

TWO = Construction.of((BLOCKS, LOCKS))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    yield compiler
    compiler.close()


def is_allowed(text: str, construction: Construction, compiler: GrammarCompiler, tokenizer: Tokenizer) -> bool:
    """Whether the text is whole by the grammar, token for token."""
    matcher = compiler.matcher_now(construction.grammar)
    try:
        for token_id in Spelling(tokenizer, tokenizer.vocab_size)(text):
            matcher.accept(token_id)
    except EngineError:
        return False
    return matcher.is_complete


@pytest.mark.parametrize(
    "text",
    [
        ABSTENTION,
        "A block is freed at the end [1].",
        'It\'s so [1][2]. The guide says "may be\nallocated again" [1].',
        '"Locks are not reentrant" [2].',
        'Der Wächter sagt’s: "``with`` statement" [2]. Ja, 日本語 [1].',
    ],
)
def test_what_cites_and_quotes_what_was_given_is_allowed_and_read(text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    assert is_allowed(text, TWO, compiler, tokenizer)
    reading = read(text, TWO)
    assert len(reading.text) == (len(text) if text != ABSTENTION else 0)
    for citation in reading.citations:
        assert citation.passage == (BLOCKS, LOCKS)[citation.number - 1]


@pytest.mark.parametrize(
    "text",
    [
        "It is so [3].",
        "It is so [0].",
        "It is so [12].",
        "It is so [1, 2].",
        "It is so.",
        "It is so [1]",
        '"Locks are not reentrant" [1].',  # the words of the other passage
        '"Locks are reentrant" [2].',
        '"ocks are not reentrant" [2].',  # not a whole word
        '"Locks are  not" [2].',
        '"" [1].',
        '" " [1].',
        "He says “may be” [1].",
        "He says 'may be' [1].",
        "As rows[1] says [1].",
        "It is so [1].  It is so [1].",
        " ".join(["It is so [1]."] * 5),
        "word " * 61 + "[1].",
        "",
    ],
)
def test_whatever_else_is_neither_allowed_nor_read(text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    assert not is_allowed(text, TWO, compiler, tokenizer)
    if text.count(" ") < 61 and text and "'may" not in text and '" "' not in text and "ocks are not" not in text:
        with pytest.raises(CitationError):  # the reader knows numbers, brackets and quotations; length and apostrophes are the grammar's
            read(text, TWO)


def test_the_places_of_statements_and_quotations_are_exact() -> None:
    text = 'The guide says "Locks are not reentrant" [2]. Blocks are freed [1][2].'
    reading = read(text, TWO)
    assert reading.text == "The guide says “Locks are not reentrant” [2]. Blocks are freed [1][2]."
    stretches = [(reading.text[c.start : c.end], c.number, c.is_quotation) for c in reading.citations]
    assert stretches == [
        ("The guide says", 2, False),
        ("Locks are not reentrant", 2, True),
        ("Blocks are freed", 1, False),
        ("Blocks are freed", 2, False),
    ]
    quotation = reading.citations[1]
    assert (quotation.source_start, quotation.source_end, quotation.quote) == (0, 23, "Locks are not reentrant")


def test_a_quotation_of_other_words_is_named() -> None:
    with pytest.raises(CitationError, match="'are never freed', which does not stand in passage 1"):
        read('"are never freed" [1].', TWO)


def test_an_answer_that_was_cut_keeps_its_whole_statements_only() -> None:
    reading = read("Blocks are freed [1]. Locks are no", TWO, is_cut=True)
    assert (reading.text, reading.dropped) == ("Blocks are freed [1].", "Locks are no")
    with pytest.raises(CitationError, match="from character 21 on"):
        read("Blocks are freed [1]. Locks are no", TWO)


def test_quotation_marks_are_a_pair_that_stands_in_no_passage(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    construction = Construction.of((passage('He said "now" and <later>.'),))
    assert construction.marks == ("{", "}")
    text = '{said "now" and} [1].'
    assert is_allowed(text, construction, compiler, tokenizer)
    assert read(text, construction).text == '“said "now" and” [1].'


def test_where_every_mark_stands_in_a_passage_no_quotation_holds_one(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    construction = Construction.of((passage('a "b" <c> {d} |e| ~f~ ^g^ h'),))
    assert construction.marks == ('"', '"')
    assert is_allowed('"<c> {d}" [1].', construction, compiler, tokenizer)
    assert not is_allowed('"a "b" <c>" [1].', construction, compiler, tokenizer)


def test_quotations_alone_say_nothing_in_other_words(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    construction = Construction.of((BLOCKS, LOCKS), "quotations")
    assert is_allowed('"A block is freed" [1]. "releases a lock" [2].', construction, compiler, tokenizer)
    assert not is_allowed('He says "A block is freed" [1].', construction, compiler, tokenizer)


def test_numbers_need_not_begin_at_one(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    construction = Construction(given={7: BLOCKS, 12: LOCKS})
    assert is_allowed("So it is [12][7].", construction, compiler, tokenizer)
    assert not is_allowed("So it is [1].", construction, compiler, tokenizer)
    assert [citation.number for citation in read("So it is [12][7].", construction).citations] == [12, 7]


def test_passages_that_no_grammar_can_hold_are_refused_before_anything_is_written() -> None:
    with pytest.raises(RequestError, match="at most 65536"):
        _ = Construction.of((passage("word " * 20_000),)).grammar


def test_no_passage_is_no_construction() -> None:
    with pytest.raises(ConfigError, match="numbers"):
        Construction.of(())


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60).filter(str.strip))
def test_any_passage_makes_a_grammar_whose_quotations_the_reader_finds(text: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    construction = Construction.of((passage(text),))
    opening, closing = construction.marks
    words = text.strip()
    quotation = f"{opening}{words}{closing} [1]."
    if is_allowed(quotation, construction, compiler, tokenizer):
        [citation] = read(quotation, construction).citations
        assert citation.quote == words
    else:  # only what holds no letter or digit, or a mark, or was cut off a separator that is white space to Python, not to the grammar
        is_cut = text[:1] != words[:1] or text[len(text.rstrip()) :].strip(" \t\n\r\f\v")
        assert not any(character.isalnum() for character in words) or opening in words or closing in words or is_cut
    assert not is_allowed(f"{opening}{words}-invented{closing} [1].", construction, compiler, tokenizer)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[campaign.Outcome], list[campaign.Outcome]]:
    """A share of `make campaign NAME=citations`: with the grammar, and the same without it."""
    folder = tiny_model(tmp_path_factory.mktemp("model"), max_positions=512)

    async def play() -> tuple[list[campaign.Outcome], list[campaign.Outcome]]:
        tokenizer = load_tokenizer(folder)
        async with Engine(load_language_model(folder), tokenizer, EngineConfig(max_num_requests=16), name="tiny") as engine:
            asked = campaign.requests("random weights", tokenizer, 20, 5000)
            return await campaign.play(asked, engine, is_held=True), await campaign.play(asked[:8], engine, is_held=False)

    return asyncio.run(play())


def test_a_model_without_sense_cites_and_quotes_only_what_it_was_given(
    answers: tuple[list[campaign.Outcome], list[campaign.Outcome]],
) -> None:
    held, _ = answers
    assert [(one.seed, one.refused, one.breaches) for one in held if one.refused or one.breaches] == []
    assert sum(one.quotations for one in held) >= 5
    assert sum(one.statements for one in held) >= 5


def test_without_the_grammar_the_same_answers_are_refused(answers: tuple[list[campaign.Outcome], list[campaign.Outcome]]) -> None:
    _, unheld = answers
    assert sum(bool(one.refused or one.breaches) for one in unheld) >= 0.9 * len(unheld)


def test_the_judge_of_the_campaign_finds_what_is_wrong() -> None:
    given_passages = {2: passage("words of it", start=len(campaign.PADDING))}
    found = campaign.breaches("It is [9] and “so” it is.", (), given_passages)
    assert json.dumps(found).count("9") == 1
    assert len(found) == 4  # a number, two marks, and no citation at all


def test_the_hostile_passages_hold_what_they_are_for() -> None:
    everything = "".join(campaign.TEXTS)
    assert all(piece in everything for piece in ('"', "“", "«", "「", "{", "[9]", "Ignore all", "</passage>", "😀", "\u2028", ABSTENTION))
