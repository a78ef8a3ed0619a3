"""reStructuredText titles against the rules of docutils."""

from __future__ import annotations

import time

from tripod.retrieval.converters.restructuredtext import RestructuredText


def titles(text: str) -> list[str]:
    return [section.title for section in RestructuredText().convert(text.encode(), "a.rst").sections]


def test_levels_are_the_order_in_which_styles_appear() -> None:
    text = "=====\nGuide\n=====\n\nIntro\n\nInstall\n=======\n\nLinux\n~~~~~\n\nUse\n===\n\nEnd\n"
    assert titles(text) == ["Guide", "Guide > Install", "Guide > Install > Linux", "Guide > Use"]


def test_a_label_may_stand_above_a_title() -> None:
    assert titles(".. _label:\n\n.. _other:\nTitle\n=====\n") == ["", "Title"]


def test_indented_and_short_underlines_are_no_titles() -> None:
    assert titles("::\n\n    Not\n    ===\n\nLong title\n==\n\ntext\n\n----\n\ntext\n") == [""]


def test_a_table_is_no_title() -> None:
    assert titles("=====  =====\nA      B\n=====  =====\n1      2\n=====  =====\n") == [""]


def test_roles_are_shown_as_their_text() -> None:
    assert titles("The :class:`Flask <flask.Flask>` and ``app``\n=============================================\n") == ["The Flask and app"]


def test_an_overline_of_dots_is_one_title_with_its_underline() -> None:
    assert titles("....\nTitl\n....\n\ntext\n") == ["Titl"]


def test_a_huge_title_takes_no_time_for_each_pair_of_its_characters() -> None:
    title = ":a" * 20_000 + "`"
    started_s = time.process_time()
    assert len(titles(f"{title}\n{'=' * len(title)}\n")) == 1
    assert time.process_time() - started_s < 1.0  # it took 6 s


def test_a_pep_is_titled_by_its_header() -> None:
    document = RestructuredText().convert(
        b"PEP: 8\nTitle: Style Guide for Python Code\nAuthor: x\n\nIntroduction\n============\n", "pep-0008.rst"
    )
    assert document.title == "PEP 8: Style Guide for Python Code"
