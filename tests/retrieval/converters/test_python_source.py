"""Python source to docstrings and comments, in place."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytest

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.python_source import PythonSource
from tripod.text.splitter import split

SOURCE = '''#!/usr/bin/env python
# Copyright of the people who wrote this.
"""About the module: naïve."""
import os

if os.name:
    class Outer:
        r"""Raw \\d docs."""

        async def method(self, x="é"): "One line."; return x

        def silent(self):
            # Because the cache is written later,
            # nothing is freed here.
            return """not a docstring"""

    def inner(): (
        "In " "pieces"
    )
x = 1  # a comment beside code that is not taken
'''


def sections(source: str, name: str = "pkg/mod.py") -> dict[str, str]:
    document = PythonSource().convert(source.encode(), name)
    return {section.title: document.text[section.start : section.end] for section in document.sections}


def test_docstrings_and_comments_stand_under_qualified_names() -> None:
    assert sections(SOURCE) == {
        "pkg.mod (comment)": "# Copyright of the people who wrote this.",
        "pkg.mod": "About the module: naïve.",
        "pkg.mod.Outer": "Raw \\d docs.",
        "pkg.mod.Outer.method": "One line.",
        "pkg.mod.Outer.silent (comment)": "# Because the cache is written later,\n            # nothing is freed here.",
        "pkg.mod.inner": 'In " "pieces',
    }


@pytest.mark.parametrize(
    ("path", "module"),
    [("contextlib.py", "contextlib"), ("asyncio/__init__.py", "asyncio"), ("src/a/b.py", "a.b"), ("__init__.py", "__init__")],
)
def test_a_module_is_named_after_its_path(path: str, module: str) -> None:
    assert list(sections('"""Doc."""', path)) == [module]


def test_lone_carriage_returns_and_form_feeds_keep_their_place() -> None:
    source = 'x = 1\r# The first of the comments here.\r\n\x0c\ndef f():\r    """Caf\xe9."""\n'
    source += "    # The second of the comments here.\r    return 1\n"
    assert sections(source) == {
        "pkg.mod (comment)": "# The first of the comments here.",
        "pkg.mod.f": "Caf\xe9.",
        "pkg.mod.f (comment)": "# The second of the comments here.",
    }


@pytest.mark.parametrize(
    "settings",
    [
        'topics = {"orders": {"retention": "7d"}}',
        'topics = {"orders": b"7d"}',
        'topics = {"orders": "7d", 1: "x"}',
        'topics = {"orders": "7d"}',
        "topics = {}",
    ],
)
def test_settings_that_begin_like_the_language_reference_are_python_as_any_other(settings: str) -> None:
    assert sections(f'{settings}\n\ndef f():\n    """Frees the block."""\n') == {"pkg.mod.f": "Frees the block."}


def test_settings_that_break_off_are_an_error() -> None:
    with pytest.raises(ConversionError, match="Python"):
        PythonSource().convert(b'topics = {"a": """unclosed', "a.py")


def test_a_topic_in_one_literal_of_many_lines_keeps_its_lines() -> None:
    source = (
        "# As Python 3.14 writes them.\ntopics = {\n    'if': r'''One\n***\n\nThree.\n''',\n    'or': 'Four.\\n'\n          'Five.',\n}\n"
    )
    document = PythonSource().convert(source.encode(), "pydoc_data/topics.py")
    assert document.text == "One\n***\n\nThree.\n\n\nFour.\nFive."
    for words in ("One", "Three", "Four", "Five"):
        assert document.line_at(document.text.index(words)) == source.count("\n", 0, source.index(words)) + 1


def test_comments_can_be_left_to_the_maintainers() -> None:
    document = PythonSource(has_comments=False).convert(SOURCE.encode(), "pkg/mod.py")
    assert [section.title for section in document.sections] == ["pkg.mod", "pkg.mod.Outer", "pkg.mod.Outer.method", "pkg.mod.inner"]


def test_comments_of_other_columns_are_other_comments() -> None:
    source = (
        "# The first of the comments here.\nif x:\n    pass\n# The second of the comments here.\n    # The third of the comments here.\n"
    )
    document = PythonSource().convert(source.encode(), "a.py")
    assert len(document.sections) == 3


def test_a_file_without_docs_has_nothing_to_index() -> None:
    document = PythonSource().convert(b"x = 1\n", "a.py")
    assert split(document, max_tokens=100) == []


def test_the_coding_cookie_is_obeyed() -> None:
    document = PythonSource().convert('# -*- coding: latin-1 -*-\n"""Caf\xe9 au lait."""\n'.encode("latin-1"), "a.py")
    assert [document.text[section.start : section.end] for section in document.sections] == ["Café au lait."]


@pytest.mark.parametrize(
    "content",
    [b"print 'two'\n", b"def f(:\n", b"# coding: klingon\n", b'"""\xff"""', b"((" * 10_000, b"-" * 100_000 + b"1", b"1" + b"+1" * 50_000],
)
def test_what_is_not_python_is_an_error(content: bytes) -> None:
    with pytest.raises(ConversionError, match="Python"):
        PythonSource().convert(content, "a.py")


@pytest.fixture(scope="module")
def reference() -> Document:
    """The language reference of the Python that runs this."""
    return PythonSource().convert(Path(pydoc_data.topics.__file__).read_bytes(), "pydoc_data/topics.py")


def test_the_language_reference_reads_as_the_topics_it_spells(reference: Document) -> None:
    assert reference.text == "\n\n".join(pydoc_data.topics.topics.values())
    assert 'The "with" statement' in {section.title for section in reference.sections}


def test_a_passage_of_the_reference_leads_back_to_its_line(reference: Document) -> None:
    file = Path(pydoc_data.topics.__file__).read_text(encoding="utf-8").splitlines()
    for words in ("execution of a block with methods", "suppressed, and execution continues"):
        offset = reference.text.find(words.split()[0], reference.text.find(words))
        line = reference.line_at(offset)
        if reference.text.find(words) >= 0 and line is not None:
            assert words.split()[0] in file[line - 1] + file[line]


def test_no_section_of_the_reference_is_indexed_twice(reference: Document) -> None:
    texts = [reference.text[section.start : section.end].strip() for section in reference.sections]
    assert len(texts) == len(set(texts)) > 150
