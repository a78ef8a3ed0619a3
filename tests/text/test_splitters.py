"""All splitters: the laws that hold for any of them, then what each is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.documents import Document, Line, Page, Passage, Section
from tripod.errors import ConfigError
from tripod.protocols import Splitter
from tripod.text.code_splitter import LANGUAGES, Code
from tripod.text.enriched import Enriched, Routed
from tripod.text.hierarchy import Hierarchical
from tripod.text.sentence_splitter import Semantic, Sentences, SentenceWindow
from tripod.text.splitter import Recursive, approximate_tokens
from tripod.text.structure_splitter import Structure, blocks
from tripod.text.token_splitter import Tokens
from tripod.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tripod.protocols import Vectors

FRAGMENTS = st.sampled_from(
    (
        *("word", "a", "longerword", "x" * 50, "é", "🦙", "12345", "A", "世界", "日本語の文章。", "(", '"', "\ud800"),
        *(". ", "? ", ".\n", "\n", "\n\n", " ", "   ", "\t", "\r\n", "\u2028", "\x1c"),
        *("# Title", "\n## Part\n", "Title\n=====\n", "- item ", "\n* item", "\n1. one", "\n    code()", "\n```\n", "\n| a | b |\n"),
        *("\ndef f(x):\n    return x\n", "\nclass C:\n", "\n    # note\n", "@d\n", "e.g. this", "Dr. Who said no."),
    )
)
TEXTS = st.lists(FRAGMENTS, max_size=50).map("".join)


def letters(texts: Sequence[str]) -> Vectors:
    """A text's direction is how often each letter stands in it: near for the same words, far for others."""
    counts = np.array([[1e-3, *(text.lower().count(chr(97 + i)) for i in range(26))] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def of(splitter: str, max_tokens: int) -> Splitter:
    return {
        "recursive": lambda: Recursive(max_tokens),
        "sentences": lambda: Sentences(max_tokens, overlap=2),
        "window": lambda: SentenceWindow(max_tokens=max_tokens),
        "structure": lambda: Structure(max_tokens),
        "semantic": lambda: Semantic(letters, "letters", max_tokens=max_tokens),
        "hierarchical": lambda: Hierarchical((4 * max_tokens, max_tokens)),
        "code": lambda: Code(max_tokens, language="python"),
        "enriched": lambda: Enriched(Recursive(max_tokens), describe=lambda document, passage: "from the start", described_by="nobody"),
        "routed": lambda: Routed("language", {"de": Sentences(max_tokens)}, Recursive(max_tokens)),
    }[splitter]()


NAMES = ("recursive", "sentences", "window", "structure", "semantic", "hierarchical", "code", "enriched", "routed")


def _solid(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS, max_tokens=st.integers(1, 40), cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(max_examples=120, deadline=None)
def test_every_passage_is_exact_within_the_budget_and_together_they_are_the_document(
    name: str, text: str, max_tokens: int, cuts: list[int]
) -> None:
    borders = sorted({min(cut, len(text)) for cut in cuts})
    sections = tuple(Section(a, b, f"s{a}") for a, b in zip(borders[::2], borders[1::2], strict=False)) if name != "code" else ()
    document = Document(source="d", text=text, title="T", sections=sections)
    splitter = of(name, max_tokens)
    passages = splitter.split(document)
    assert passages == splitter.split(document)
    covered = set[int]()
    for passage, before in zip(passages, [None, *passages], strict=False):
        assert text[passage.start : passage.end] == passage.text == passage.text.strip()
        assert approximate_tokens(passage.text) <= max_tokens or len(passage.text) == 1
        assert before is None or (passage.start, passage.end) > (before.start, before.end)
        assert passage.line == text.count("\n", 0, passage.start) + 1
        covered.update(range(passage.start, passage.end))
    wanted = sections or (Section(0, len(text)),)
    assert _solid("".join(text[i] for i in sorted(covered))) == _solid("".join(text[s.start : s.end] for s in wanted))


@pytest.mark.parametrize("name", NAMES)
def test_a_passage_knows_page_line_section_and_metadata(name: str) -> None:
    text = "One is here. Two is there.\n\nThree is last."
    document = Document(
        source="d", text=text, pages=(Page(4, 0, 28), Page(5, 28, len(text))), lines=(Line(0, 7), Line(28, 9)), metadata={"language": "de"}
    )
    passages = of(name, 6).split(document)
    assert {(p.page, p.line) for p in passages if p.start < 28} == {(4, 7)}
    if name != "code":  # which sees one expression
        assert {(p.page, p.line) for p in passages if p.start >= 28} == {(5, 9)}
    assert all(p.metadata == {"language": "de"} and p.source == "d" for p in passages)
    plain = of(name, 6).split(Document(source="d", text=text, pages=(Page(1, 0, len(text)),)))
    assert {p.line for p in plain} == {None}


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_have_other_fingerprints(name: str) -> None:
    assert of(name, 10).fingerprint == of(name, 10).fingerprint != of(name, 11).fingerprint


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("enriched", "routed")])
def test_a_budget_below_one_token_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"max_tokens=0|levels="):
        of(name, 0)


# Sentences


def _texts(passages: Sequence[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def test_whole_sentences_are_packed_and_overlap_by_as_many_as_asked_for() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten e.g. eleven."
    count = lambda part: len(part.split())  # noqa: E731
    document = Document(source="d", text=text)
    assert _texts(Sentences(6, count_tokens=count).split(document)) == [
        "One two three. Four five six.",
        "Seven eight nine. Ten e.g. eleven.",
    ]
    assert _texts(Sentences(6, overlap=1, count_tokens=count).split(document)) == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
        "Seven eight nine. Ten e.g. eleven.",
    ]


def test_a_window_gives_a_sentence_with_its_neighbours_but_not_those_of_another_section() -> None:
    text = "A is one. B is two. C is three. D is four. E is five."
    document = Document(source="d", text=text, sections=(Section(0, 32, "first"), Section(32, len(text), "second")))
    splitter = SentenceWindow(window=1)
    passages = splitter.split(document)
    assert _texts(passages) == ["A is one.", "B is two.", "C is three.", "D is four.", "E is five."]
    assert [splitter.around(document, passage).text for passage in passages] == [
        "A is one. B is two.",
        "A is one. B is two. C is three.",
        "B is two. C is three.",
        "D is four. E is five.",
        "D is four. E is five.",
    ]
    with pytest.raises(ConfigError, match="no sentence of its document"):
        splitter.around(Document(source="d", text="Other words."), passages[0])


def test_a_passage_by_meaning_ends_where_the_subject_changes() -> None:
    bees = ["Bees see bees.", "Bees feed bees.", "Be seen, bees.", "Feed bees, be seen."]
    rooms = ["A dim room.", "No moon, dim rooms.", "Rooms of doom.", "Moon on room."]
    document = Document(source="d", text=" ".join([*bees, *rooms]))
    assert _texts(Semantic(letters, "letters", percentile=90).split(document)) == [" ".join(bees), " ".join(rooms)]


# Tokens


@pytest.mark.parametrize("name", ["pythia", "mistral-v1"])
def test_passages_of_tokens_are_so_long_and_overlap_so_far(
    shared_data: Path, real_tokenizer: Callable[[str], Tokenizer], name: str
) -> None:
    tokenizer = real_tokenizer(name)
    text = (shared_data / "docs-rst-peps" / "pep-0012.rst").read_text(encoding="utf-8")[:20_000] + " 日本 🦙é " * 50
    document = Document(source="d", text=text)
    plain = Tokens(tokenizer, name, max_tokens=100).split(document)
    assert _solid("".join(_texts(plain))) == _solid(text)
    assert all(text[p.start : p.end] == p.text for p in plain)
    lengths = [len(tokenizer.encode(p.text, add_special_tokens=False)) for p in plain]
    assert sum(95 <= length <= 101 for length in lengths) > 0.9 * len(lengths)  # white space at the ends is left out; a cut word is two
    lapped = Tokens(tokenizer, name, max_tokens=100, overlap=20).split(document)
    shared = [a.end - b.start for a, b in pairwise(lapped)]
    assert min(shared) > 0
    assert len(lapped) == pytest.approx(len(plain) * 100 / 80, abs=2)


@given(text=TEXTS.filter(lambda text: "\ud800" not in text), max_tokens=st.integers(1, 20), overlap=st.integers(0, 19))
@settings(max_examples=60, deadline=None)
def test_passages_of_byte_tokens_cover_any_text(
    real_tokenizer: Callable[[str], Tokenizer], text: str, max_tokens: int, overlap: int
) -> None:
    splitter = Tokens(real_tokenizer("bytes"), "bytes", max_tokens=max_tokens, overlap=min(overlap, max_tokens - 1))
    passages = splitter.split(Document(source="d", text=text))
    covered = {i for p in passages for i in range(p.start, p.end)}
    assert all(text[p.start : p.end] == p.text for p in passages)
    assert _solid("".join(text[i] for i in sorted(covered))) == _solid(text)


def test_a_text_that_the_tokenizer_rewrites_is_cut_by_counting(shared_data: Path, real_tokenizer: Callable[[str], Tokenizer]) -> None:
    tokenizer = real_tokenizer("pythia")  # whose normaliser reorders combining marks, of which PEP 8 has some
    text = (shared_data / "docs-rst-peps" / "pep-0008.rst").read_text(encoding="utf-8")[:20_000]
    passages = Tokens(tokenizer, "pythia", max_tokens=100, overlap=20).split(Document(source="d", text=text))
    assert _solid("".join(_texts(passages))) == _solid(text)
    assert max(len(tokenizer.encode(p.text, add_special_tokens=False)) for p in passages) <= 100


# Structure


def test_a_fence_is_one_block_with_its_blank_lines() -> None:
    text = "intro\n\n```py\na = 1\n\nb = 2\n```\n\n| x |\n| - |\n| 1 |\n\n\nend\n"
    pieces = [text[start:end] for start, end in blocks(text, 0, len(text))]
    assert [piece.strip() for piece in pieces] == ["intro", "```py\na = 1\n\nb = 2\n```", "| x |\n| - |\n| 1 |", "end"]
    assert "".join(pieces) == text


def test_blocks_are_packed_and_never_cut_where_they_fit() -> None:
    fence = "```\nalpha beta\n\ngamma delta\n```"
    text = f"one two three four five six\n\n{fence}\n\nseven eight"
    count = lambda part: len(re.findall(r"\w+", part))  # noqa: E731
    assert _texts(Structure(7, count).split(Document(source="d", text=text))) == [
        "one two three four five six",
        f"{fence}\n\nseven eight",
    ]


# Code

PYTHON = '''import os

# Says hello.
# Twice.
@cache
def hello(name: str) -> str:
    return f"hello {name}"


class Box:
    """A box."""

    def put(self, thing: str) -> None:
        self.things.append(thing)

    def take(self) -> str:
        return self.things.pop()
'''


def test_code_is_cut_at_definitions_and_comments_stay_with_what_they_explain() -> None:
    passages = Code(30, language="python").split(Document(source="a.py", text=PYTHON))
    assert [(p.section, p.text.splitlines()[0]) for p in passages] == [
        ("", "import os"),
        ("hello", "# Says hello."),
        ("Box", "class Box:"),
        ("Box.put", "def put(self, thing: str) -> None:"),
        ("Box.take", "def take(self) -> str:"),
    ]
    assert passages[1].text.startswith("# Says hello.\n# Twice.\n@cache\ndef hello")
    assert passages[2].text == 'class Box:\n    """A box."""'


SAMPLES = {
    "c": ("int one(void) {\n  return 1;\n}\n\nint two(int x) {\n  return x + 2;\n}\n", ["one", "two"]),
    "go": ("package a\n\nfunc One() int {\n\treturn 1\n}\n\nfunc Two(x int) int {\n\treturn x\n}\n", ["One", "Two"]),
    "java": ("class One {\n  int a() { return 1; }\n}\n\nclass Two {\n  int b() { return 2; }\n}\n", ["One", "Two"]),
    "javascript": ("function one() {\n  return 1;\n}\n\nexport function two(x) {\n  return x;\n}\n", ["one", "two"]),
    "python": ("def one():\n    return 1\n\n\ndef two(x):\n    return x\n", ["one", "two"]),
    "rust": ("fn one() -> i32 {\n    1\n}\n\nfn two(x: i32) -> i32 {\n    x\n}\n", ["one", "two"]),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_names_its_definitions(language: str) -> None:
    text, names = SAMPLES[language]
    document = Document(source="a", text=text, metadata={"code": language})
    passages = Code(16).split(document)
    found = [passage.section for passage in passages if passage.section]
    assert [name for name in found if name in names] == names


def test_a_language_without_a_grammar_is_cut_as_text() -> None:
    document = Document(source="a.lua", text="one two three four", metadata={"code": "lua"})
    assert _texts(Code(2).split(document)) == _texts(Recursive(2).split(document))
    with pytest.raises(ConfigError, match="language='lua' is not known"):
        Code(2, language="lua")


# Hierarchy


@given(text=TEXTS, sizes=st.lists(st.integers(1, 60), min_size=2, max_size=3, unique=True))
@settings(max_examples=100, deadline=None)
def test_each_level_lies_within_the_one_above_and_holds_the_same_words(text: str, sizes: list[int]) -> None:
    splitter, document = Hierarchical(tuple(sorted(sizes, reverse=True))), Document(source="d", text=text)
    tree = splitter.tree(document)
    for above, below in pairwise(tree):
        assert _solid("".join(_texts(above))) == _solid("".join(_texts(below)))
        for small in below:
            assert sum(large.start <= small.start and small.end <= large.end for large in above) == 1
    for leaf in tree[-1]:
        ancestors = splitter.ancestors(document, leaf)
        assert len(ancestors) == len(sizes) - 1
        assert all(leaf in splitter.children(document, large) for large in ancestors)


def test_levels_that_do_not_shrink_are_refused() -> None:
    for levels in ((), (100, 200), (100, 100)):
        with pytest.raises(ConfigError, match="give the largest first"):
            Hierarchical(levels)


# Enrichment and routing


def test_a_passage_is_told_its_title_path_and_place() -> None:
    document = Document(source="d", text="Some words.", title="Guide", sections=(Section(0, 11, "Install"),))
    [told] = Enriched(Recursive(9)).split(document)
    assert (told.section, told.text) == ("Guide > Install", "Some words.")
    [described] = Enriched(Recursive(9), describe=lambda d, p: f"About {p.text.split()[1]}\nof {d.title}").split(document)
    assert described.section == "Guide > Install: About words. of Guide"
    [bare] = Enriched(Recursive(9)).split(Document(source="d", text="x", title="Guide", sections=(Section(0, 1, "Guide > Install"),)))
    assert bare.section == "Guide > Install"


def test_a_document_is_cut_by_what_its_metadata_says() -> None:
    routed = Routed("language", {"de": SentenceWindow()}, Recursive(50))
    text = "Eins ist hier. Zwei ist da."
    assert len(routed.split(Document(source="d", text=text, metadata={"language": "de"}))) == 2
    assert len(routed.split(Document(source="d", text=text, metadata={"language": "en"}))) == 1
    assert len(routed.split(Document(source="d", text=text))) == 1
