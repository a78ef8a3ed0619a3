"""SentencePiece models against the sentencepiece library's own encode and decode."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.text.conftest import SENTENCEPIECE
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tripod.text.tokenizer import Tokenizer

RealTokenizer = Callable[[str], Tokenizer]
LAW = settings(max_examples=200, deadline=None)


def _opened(tokenizer: Tokenizer) -> SentencePieceTokenizer:
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


def _one_mark(text: str) -> str:
    """The library shows a replacement mark for each byte of an invalid stretch, UTF-8 decoders show one for the stretch."""
    return re.sub("\ufffd+", "\ufffd", text)


@pytest.mark.parametrize("name", SENTENCEPIECE)
@given(raw=st.lists(st.integers(0, 2**31), max_size=30))
@LAW
def test_any_ids_decode_as_the_library_decodes_them(real_tokenizer: RealTokenizer, name: str, raw: list[int]) -> None:
    tokenizer = _opened(real_tokenizer(name))
    ids = [i % 300 if i % 2 else i for i in raw]
    ids = [i for i in (i % tokenizer.vocab_size for i in ids) if i not in tokenizer.special_ids]
    assert _one_mark(tokenizer.decode(ids)) == _one_mark(tokenizer.inner.decode(ids))


@pytest.mark.parametrize("name", SENTENCEPIECE)
@given(text=st.text())
@LAW
def test_any_text_without_control_pieces_is_encoded_as_the_library_encodes_it(real_tokenizer: RealTokenizer, name: str, text: str) -> None:
    tokenizer = _opened(real_tokenizer(name))
    assume(not any(tokenizer.token_text(i) in text for i in tokenizer.special_ids))
    assert tokenizer.encode(text, add_special_tokens=False) == tokenizer.inner.encode(text)


@pytest.mark.parametrize("name", ["mistral-v1", "mistral-v3"])
def test_real_documents_round_trip(shared_data: Path, real_tokenizer: RealTokenizer, name: str) -> None:
    tokenizer = real_tokenizer(name)
    files = [*sorted((shared_data / "docs-md-fastapi").rglob("*.md"))[::4], *sorted((shared_data / "docs-rst-peps").glob("*.rst"))[::16]]
    assert len(files) > 40
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert tokenizer.decode(tokenizer.encode(text)) == text, file


def test_bos_is_added_where_the_model_has_one(real_tokenizer: RealTokenizer) -> None:
    assert real_tokenizer("mistral-v1").encode("Hello world") == [1, 22557, 1526]
    assert real_tokenizer("mistral-v1").encode("Hello world", add_special_tokens=False) == [22557, 1526]


def test_the_configuration_may_want_no_bos_and_an_eos(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to(shared_data / "tokenizers/mistral-v1.model")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}', encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("Hello world") == [22557, 1526, 2]


def test_a_model_without_bos_begins_with_the_text(real_tokenizer: RealTokenizer) -> None:
    tokenizer = real_tokenizer("t5-test")
    assert tokenizer.bos_id is None
    assert tokenizer.eos_ids == {1}
    assert tokenizer.encode("world") == tokenizer.encode("world", add_special_tokens=False)


def test_control_pieces_in_a_rendered_template_become_their_ids(real_tokenizer: RealTokenizer) -> None:
    """[INST] is 3 and [/INST] is 4 in Mistral's v3 vocabulary; in v1 both are plain text."""
    rendered = "<s>[INST] Hello [/INST]"
    v3 = real_tokenizer("mistral-v3").encode(rendered, add_special_tokens=False)
    assert (v3[:2], v3[-1]) == ([1, 3], 4)
    assert real_tokenizer("mistral-v3").decode(v3[2:-1]).strip() == "Hello"
    v1 = real_tokenizer("mistral-v1").encode(rendered, add_special_tokens=False)
    assert v1[0] == 1
    assert 3 not in v1


def test_byte_pieces_are_bytes_and_spaces_are_spaces(real_tokenizer: RealTokenizer) -> None:
    tokenizer = real_tokenizer("mistral-v1")
    assert tokenizer.token_bytes(243) == b"\xf0"  # <0xF0>
    assert tokenizer.token_bytes(22557) == b" Hello"
    assert tokenizer.opening_bytes(22557) == (b"Hello", True)
    assert tokenizer.token_bytes(2) == b"</s>"
