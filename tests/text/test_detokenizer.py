"""Incremental detokenisation, as laws over any ids of real tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.conftest import ALL
from tripod.text.detokenizer import Detokenizer
from tripod.text.tokenizer import Tokenizer

RealTokenizer = Callable[[str], Tokenizer]
LAW = settings(max_examples=150, deadline=None)
RAW_IDS = st.lists(st.integers(0, 2**31), max_size=40)


def _ids(tokenizer: Tokenizer, raw: list[int]) -> list[int]:
    """Half of the ids among the first 300, where most vocabularies keep their bytes and marks; a few beyond the last token."""
    return [i % 300 if i % 2 else i % (tokenizer.vocab_size + 3) for i in raw]


@pytest.mark.parametrize("name", ALL)
@given(raw=RAW_IDS)
@LAW
def test_pushes_and_flush_join_to_the_decoded_text(real_tokenizer: RealTokenizer, name: str, raw: list[int]) -> None:
    tokenizer = real_tokenizer(name)
    ids = _ids(tokenizer, raw)
    detokenizer = Detokenizer(tokenizer)
    pushed = [detokenizer.push(i) for i in ids]
    assert "".join(pushed) + detokenizer.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ALL)
@given(raw=RAW_IDS)
@LAW
def test_what_was_shown_is_never_taken_back(real_tokenizer: RealTokenizer, name: str, raw: list[int]) -> None:
    tokenizer = real_tokenizer(name)
    ids = _ids(tokenizer, raw)
    whole = tokenizer.decode(ids)
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for token_id in ids:
        shown += detokenizer.push(token_id)
        assert whole.startswith(shown)


@pytest.mark.parametrize("name", ["bytes", "pythia", "gpt2", "mistral-v1", "mistral-v3", "stories260K"])
@given(text=st.text())
@LAW
def test_valid_text_comes_out_without_any_replacement_mark(real_tokenizer: RealTokenizer, name: str, text: str) -> None:
    text = text.replace("\ufffd", "")
    tokenizer = real_tokenizer(name)
    detokenizer = Detokenizer(tokenizer)
    pushed = [detokenizer.push(i) for i in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pushed)
    assert detokenizer.flush() == ""


def test_a_character_of_four_byte_tokens_appears_whole_with_the_fourth(real_tokenizer: RealTokenizer) -> None:
    detokenizer = Detokenizer(real_tokenizer("bytes"))
    assert [detokenizer.push(byte) for byte in "🦙".encode()] == ["", "", "", "🦙"]


def test_an_incomplete_character_is_one_replacement_mark_at_the_flush(real_tokenizer: RealTokenizer) -> None:
    detokenizer = Detokenizer(real_tokenizer("bytes"))
    assert [detokenizer.push(byte) for byte in "🦙".encode()[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_are_not_shown(real_tokenizer: RealTokenizer) -> None:
    detokenizer = Detokenizer(real_tokenizer("bytes"))
    assert [detokenizer.push(i) for i in (257, ord("a"), 258, ord("b"), 256)] == ["", "a", "", "b", ""]


def test_only_the_first_leading_space_of_sentencepiece_is_taken_off(real_tokenizer: RealTokenizer) -> None:
    tokenizer = real_tokenizer("mistral-v1")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(i) for i in (1, 22557, 1526, 22557)] == ["", "Hello", " world", " Hello"]  # <s> ▁Hello ▁world ▁Hello
    assert detokenizer.flush() == ""
    assert detokenizer.push(22557) == "Hello"  # a new text begins after the flush
