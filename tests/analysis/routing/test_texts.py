"""Rows of one length, each of a class that its file or line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tripod.analysis.routing.texts import labelled_rows, text_files, texts_hash
from tripod.errors import ConfigError
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_byte_tokenizer(tmp_path / "tokenizer")
    return load_tokenizer(tmp_path / "tokenizer")


def test_a_file_is_a_class_and_a_line_says_its_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "code.head.txt").write_text("x = 1\n" * 20)
    lines = [
        {"text": "Guten Tag, liebe Welt", "language": "de"},
        {"text": "hello", "language": "en"},
        {"text": " world, again", "language": "en"},
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = labelled_rows(text_files([str(tmp_path)]), "language", tokenizer, num_rows=2, row_tokens=8)
    assert rows.classes == ("code", "code", "de", "de", "en", "en")
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert rows.token_ids.shape == (6, 8)
    assert tokenizer.decode(rows.token_ids[4].tolist()) == "hello world"[: 8 - len(first)]  # texts of a class follow each other


def test_only_texts_of_which_a_row_has_something_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "book.txt").write_text("one long text, of which every row is cut")
    lines = [{"text": text, "domain": "posts"} for text in ("hello", "", " world,", " again", " and more that no row reaches")]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = labelled_rows(text_files([str(tmp_path)]), "domain", tokenizer, num_rows=2, row_tokens=8)
    assert rows.num_texts == {"book": 1, "posts": 3}  # 16 tokens of bytes, 14 if each row begins with one of its own: 5 + 7 + 4


def test_a_pattern_takes_some_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "SOURCE.md", "counts.json"):
        (tmp_path / name).write_text("text")
    assert [file.name for file in text_files([str(tmp_path / "*.txt")])] == ["a.txt", "b.txt"]
    assert [file.name for file in text_files([str(tmp_path)])] == ["SOURCE.md", "a.txt", "b.txt"]


def test_what_cannot_be_cut_says_why(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(ConfigError, match="the texts of short have 3 tokens; expected two rows of 8"):
        labelled_rows(text_files([str(tmp_path / "short.txt")]), "domain", tokenizer, num_rows=2, row_tokens=8)
    (tmp_path / "lines.jsonl").write_text('{"text": "a", "language": "de"}\n')
    with pytest.raises(ConfigError, match="a line has the fields text, language; expected text and domain"):
        labelled_rows([tmp_path / "lines.jsonl"], "domain", tokenizer, num_rows=2, row_tokens=8)
    with pytest.raises(ConfigError, match="names no text"):
        text_files([str(tmp_path / "absent")])


def test_another_name_or_another_word_is_another_measurement(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("a.txt", "two")):
        (tmp_path / name).write_text(text)
        hashes.add(texts_hash([tmp_path / name]))
    assert len(hashes) == 3
