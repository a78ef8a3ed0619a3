"""Markdown to sections under heading paths."""

from __future__ import annotations

import time

import pytest

from tripod.documents import Document
from tripod.retrieval.converters.markdown import Markdown


def convert(text: str) -> Document:
    return Markdown().convert(text.encode(), "a.md")


def titles(text: str) -> list[str]:
    return [section.title for section in convert(text).sections]


def test_headings_become_paths() -> None:
    text = "# Guide\n\nIntro.\n\n## Install ##\n\n### Linux\n\napt\n\n## Use\n\nRun.\n"
    document = convert(text)
    assert document.title == "Guide"
    assert titles(text) == ["Guide", "Guide > Install", "Guide > Install > Linux", "Guide > Use"]
    assert [text[section.start : section.end] for section in document.sections] == [
        "# Guide\n\nIntro.\n\n",
        "## Install ##\n\n",
        "### Linux\n\napt\n\n",
        "## Use\n\nRun.\n",
    ]


def test_underlined_headings() -> None:
    assert titles("Guide\n=====\n\nIntro\n\nUse\n---\n\ntext") == ["Guide", "Guide > Use"]


def test_what_stands_in_a_fence_is_no_heading() -> None:
    assert titles("# A\n\n````sh\n# comment\n```\n# still\n````\n\n# B\n\n~~~\n# no\n~~~\n") == ["A", "B"]


def test_rules_lists_and_comments_are_no_headings() -> None:
    assert titles("# A\n\ntext\n\n---\n\n- item\n---\n\n<!--\n# hidden\n-->\n\n#no space\n") == ["A"]


def test_front_matter_gives_the_title_and_is_not_indexed() -> None:
    document = convert('---\ntitle: "The title"\nlayout: x\n---\nBody.\n')
    assert document.title == "The title"
    assert [document.text[section.start : section.end] for section in document.sections] == ["Body.\n"]


def test_a_rule_at_the_start_is_no_front_matter() -> None:
    document = convert("---\n\nIntro.\n\n---\n\nRest.\n")
    assert "Intro." in "".join(document.text[section.start : section.end] for section in document.sections)


@pytest.mark.parametrize(
    ("line", "title"),
    [("#", ""), ("# #", ""), ("## a##", "a##"), ("# a # b #  ", "a # b"), ("#\ta\t##", "a"), ("# [a](u_(x)) [b [c](u)](u)", "a [b c](u)")],
)
def test_closing_marks_and_links_of_a_heading(line: str, title: str) -> None:
    assert titles(f"{line}\n\ntext\n") == [title]


@pytest.mark.parametrize("piece", [" ", " #", "`", "[", "[a](", "![", "*", "**a", "{", "{a} "])
def test_a_huge_heading_takes_no_time_for_each_pair_of_its_characters(piece: str) -> None:
    started_s = time.process_time()
    assert len(titles(f"# a{piece * 20_000}b\n")) == 1
    assert time.process_time() - started_s < 1.0  # some took 2 to 12 s


def test_titles_are_shown_without_markup() -> None:
    assert titles("# Use `with` and [links](x.md) **now** { #anchor }\n") == ["Use with and links now"]


def test_windows_line_ends_keep_their_place_in_the_file() -> None:
    document = convert("# A\r\n\r\ntext\r\n## B\r\n")
    assert [(section.start, section.title) for section in document.sections] == [(0, "A"), (13, "A > B")]
