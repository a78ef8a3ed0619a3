"""reStructuredText titles against the rules of docutils."""

from __future__ import annotations

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


def test_a_pep_is_titled_by_its_header() -> None:
    document = RestructuredText().convert(
        b"PEP: 8\nTitle: Style Guide for Python Code\nAuthor: x\n\nIntroduction\n============\n", "pep-0008.rst"
    )
    assert document.title == "PEP 8: Style Guide for Python Code"
