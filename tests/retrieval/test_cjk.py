"""Runs of Chinese, Japanese and Korean characters, and what is asked for in their place."""

from __future__ import annotations

import pytest

from tripod.retrieval.cjk import asked, indexed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words, café", ""),
        ("東京都 に", "東 京 都 東京 京都 に"),
        ("Python入門3版, and words", "Python 入 門 入門 3 版"),
        ("서울시", "서 울 시 서울 울시"),
        ("𠀀𠀁", "𠀀 𠀁 𠀀𠀁"),
    ],
)
def test_a_run_is_indexed_as_its_characters_and_pairs(text: str, expected: str) -> None:
    assert indexed(text) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("word", ["word"]),
        ("水", ["水"]),
        ("東京", ["東京"]),
        ("東京都知事", ["東京", "京都", "都知", "知事"]),
        ("python入門3", ["python", "入門", "3"]),
    ],
)
def test_a_run_is_asked_for_by_its_pairs(word: str, expected: list[str]) -> None:
    assert asked(word) == expected
    assert set(asked(word)) <= set(indexed(f"東{word}東").split()) | {word}
