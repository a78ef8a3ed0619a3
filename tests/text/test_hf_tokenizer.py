"""tokenizer.json: round trips of real text, and agreement with the tokenizers library and with transformers."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from tests.text.conftest import FILES
from tripod.errors import TokenizerError
from tripod.text.hf_tokenizer import HfTokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

RealTokenizer = Callable[[str], Tokenizer]
LAW = settings(max_examples=200, deadline=None)
WHOLE = "TRIPOD_CAMPAIGN" in os.environ  # all of each file instead of a sample: about 40 s on two cores


def _hf(tokenizer: Tokenizer) -> HfTokenizer:
    assert isinstance(tokenizer, HfTokenizer)
    return tokenizer


def _texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below the folder that is text in UTF-8: all of it, or its first 20,000 characters and as many from the middle."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            try:
                text = file.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield file, text if WHOLE or len(text) < 40_000 else text[:20_000] + text[len(text) // 2 :][:20_000]


def _assert_round_trip(tokenizer: HfTokenizer, texts: list[tuple[Path, str]], form: Callable[[str], str]) -> int:
    """`decode(encode(text))` is `form(text)`; a few files at a time, so that the library uses every core and little memory."""
    for first in range(0, len(texts), 32):
        batch = texts[first : first + 32]
        encodings = tokenizer.inner.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        for (file, text), encoding in zip(batch, encodings, strict=True):
            assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == form(text), file
    return len(texts)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.campaign
def test_the_20b_tokenizer_round_trips_every_text(shared_data: Path, real_tokenizer: RealTokenizer) -> None:
    """It normalises to NFC before all else, so that form comes back; two of the files are not in it already."""
    assert _assert_round_trip(_hf(real_tokenizer("pythia")), list(_texts(shared_data)), _nfc) > 800


def test_gpt2_round_trips_the_peps_and_the_fastapi_documentation(shared_data: Path, real_tokenizer: RealTokenizer) -> None:
    texts = [*_texts(shared_data / "docs-rst-peps"), *_texts(shared_data / "docs-md-fastapi")]
    assert _assert_round_trip(_hf(real_tokenizer("gpt2")), texts, str) > 300


@pytest.mark.parametrize(("name", "form"), [("bytes", str), ("gpt2", str), ("pythia", _nfc)])
@given(text=st.text())
@LAW
def test_any_text_round_trips(real_tokenizer: RealTokenizer, name: str, form: Callable[[str], str], text: str) -> None:
    tokenizer = real_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == form(text)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "pythia", "torchtitan"])
@pytest.mark.parametrize("skip", [True, False])
@given(raw=st.lists(st.integers(0, 2**31), max_size=30))
@LAW
def test_byte_level_ids_decode_as_the_library_decodes_them(real_tokenizer: RealTokenizer, name: str, skip: bool, raw: list[int]) -> None:
    """Any ids, so most of these texts are invalid UTF-8: the number of replacement marks agrees too."""
    tokenizer = _hf(real_tokenizer(name))
    ids = [i % 300 if i % 2 else i % tokenizer.vocab_size for i in raw]
    assert tokenizer.decode(ids, skip_special_tokens=skip) == tokenizer.inner.decode(ids, skip_special_tokens=skip)


def test_tokens_that_only_the_configuration_adds_are_read_as_transformers_reads_them(
    shared_data: Path, tmp_path: Path, real_tokenizer: RealTokenizer
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.json").symlink_to(shared_data / FILES["torchtitan"][0])
    (tmp_path / "tokenizer_config.json").symlink_to(shared_data / "tokenizers/torchtitan-test-tokenizer_config.json")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), real_tokenizer("torchtitan")
    text = "<|begin_of_text|>Hello, wörld!<|vision_start|> 12345\n\n<|end_of_text|>"
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids == {theirs.eos_token_id}
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert len(ours.special_ids) > 10


def test_an_added_token_without_its_promised_id_is_refused(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(shared_data / FILES["gpt2"][0])
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"50300": {"content": "<|im_end|>"}}}', encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"'<\|im_end\|>' the id 50300.* at 50257"):
        load_tokenizer(tmp_path)


def _made(decoder: Any, vocab: dict[str, int]) -> HfTokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.decoder = decoder
    return HfTokenizer(inner)


LLAMA_DECODER = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
PIECES = ("<unk>", "▁", "▁▁", "▁Hello", "lo", "▁wörld", ".", "▁n't", "##s", "##.", "a", "▁▁x", "日本")
VOCAB = {piece: i for i, piece in enumerate((*PIECES, *(f"<0x{byte:02X}>" for byte in range(256))))}


@given(ids=st.lists(st.integers(0, len(VOCAB) - 1), max_size=12))
@LAW
def test_byte_fallback_decodes_as_the_library_does_wherever_the_bytes_are_valid(ids: list[int]) -> None:
    tokenizer = _made(LLAMA_DECODER, VOCAB)
    theirs = tokenizer.inner.decode(ids)
    ours = tokenizer.decode(ids)
    assert ours == theirs if "\ufffd" not in theirs else "\ufffd" in ours


def test_a_byte_token_of_a_space_is_taken_off_the_opening_like_any_space() -> None:
    tokenizer = _made(LLAMA_DECODER, VOCAB)
    ids = [VOCAB["<0x20>"], VOCAB["lo"], VOCAB["<0x20>"], VOCAB["a"]]
    assert tokenizer.decode(ids) == tokenizer.inner.decode(ids) == "lo a"


def test_valid_characters_beside_invalid_bytes_are_kept() -> None:
    tokenizer = _made(LLAMA_DECODER, VOCAB)
    ids = [VOCAB[f"<0x{byte:02X}>"] for byte in "日".encode() + b"\xff"]
    assert tokenizer.decode(ids) == "日\ufffd"  # the library: four replacement marks


@pytest.mark.parametrize(
    "decoder",
    [decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never"), decoders.WordPiece(), decoders.WordPiece(cleanup=False), None],
    ids=["metaspace", "metaspace-never", "wordpiece", "wordpiece-without-cleanup", "none"],
)
@given(ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=12))
@LAW
def test_other_decoders_decode_as_the_library_does(decoder: Any, ids: list[int]) -> None:
    tokenizer = _made(decoder, {piece: i for i, piece in enumerate(PIECES)})
    assert tokenizer.decode(ids) == tokenizer.inner.decode(ids)


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "Strip"),
    ],
    ids=["bpe", "ctc", "strip-right"],
)
def test_a_decoder_that_looks_ahead_is_refused(decoder: Any, named: str) -> None:
    with pytest.raises(TokenizerError, match=f"{named} cannot be streamed"):
        _made(decoder, VOCAB)


def test_truncation_and_padding_of_the_file_are_left_out(shared_data: Path, tmp_path: Path) -> None:
    description = json.loads((shared_data / FILES["gpt2"][0]).read_text(encoding="utf-8"))
    description["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    description["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode(" a" * 6)) == 6
    assert len(tokenizer.encode(" a")) == 1


def test_a_token_s_text_shows_what_is_readable_of_its_bytes(real_tokenizer: RealTokenizer) -> None:
    tokenizer = real_tokenizer("gpt2")
    assert [tokenizer.token_text(i) for i in tokenizer.encode(" Hello")] == [" Hello"]
    llama = tokenizer.encode("🦙")
    assert b"".join(map(tokenizer.token_bytes, llama)) == "🦙".encode()
    assert tokenizer.token_text(llama[0]) == "\ufffd"
