"""Opening a folder's tokenizer: which file is read, what the configuration files add, and what is wrong with a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.text.conftest import FILES
from tripod.errors import TokenizerError
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.hf_tokenizer import HfTokenizer
from tripod.text.llama2c_tokenizer import Llama2cTokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.sentencepiece_tokenizer import SentencePieceTokenizer
from tripod.text.tokenizer import Tokenizer, check_fits

RealTokenizer = Callable[[str], Tokenizer]


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte tokenizer with nothing said about its special tokens."""
    write_byte_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "vocab_size"),
    [
        ("pythia", HfTokenizer, 50277),  # 50254 entries, then 23 added runs of spaces up to id 50276
        ("gpt2", HfTokenizer, 50257),
        ("mistral-v1", SentencePieceTokenizer, 32000),
        ("mistral-v3", SentencePieceTokenizer, 32768),
        ("stories260K", Llama2cTokenizer, 512),
    ],
)
def test_each_kind_of_file_is_recognised(real_tokenizer: RealTokenizer, name: str, kind: type, vocab_size: int) -> None:
    tokenizer = real_tokenizer(name)
    assert isinstance(tokenizer, kind)
    assert tokenizer.vocab_size == vocab_size


def test_a_tokenizer_json_is_preferred_to_a_sentencepiece_model(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"not read")
    assert load_tokenizer(folder).vocab_size == 259


def test_without_any_configuration_nothing_begins_or_ends_a_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.special_ids) == (None, frozenset(), frozenset({256, 257, 258}))


def test_special_tokens_are_named_as_strings_or_as_objects(folder: Path) -> None:
    _write(folder / "tokenizer_config.json", {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (257, {258})


def test_every_end_of_the_generation_config_ends_a_text(folder: Path) -> None:
    _write(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    _write(folder / "generation_config.json", {"eos_token_id": [256, 258], "bos_token_id": 257})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (257, {256, 258})


def test_the_model_s_config_counts_only_where_nothing_else_names_an_end(folder: Path) -> None:
    _write(folder / "config.json", {"bos_token_id": 1, "eos_token_id": [2, 3]})  # a default constructor's ids: bytes, here
    assert load_tokenizer(folder).eos_ids == {2, 3}
    _write(folder / "generation_config.json", {"eos_token_id": 258})
    assert load_tokenizer(folder).eos_ids == {258}


def test_an_id_below_zero_means_none(folder: Path) -> None:
    _write(folder / "config.json", {"bos_token_id": -1, "eos_token_id": -1})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, frozenset())


def test_special_tokens_map_is_read_where_the_configuration_is_silent(folder: Path) -> None:
    _write(folder / "special_tokens_map.json", {"eos_token": "<|im_end|>", "bos_token": "<|im_end|>"})
    _write(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>", "bos_token": None})
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (258, {256})


def test_an_id_without_a_token_adds_nothing(real_tokenizer: RealTokenizer) -> None:
    """Pythia's embedding has 50304 rows for 50277 tokens; random weights choose any of them."""
    tokenizer = real_tokenizer("pythia")
    hello = tokenizer.encode("Hello")
    assert tokenizer.decode([50300, *hello, 50303]) == "Hello"
    assert tokenizer.token_bytes(50300) == b""


@pytest.mark.parametrize("name", ["pythia", "mistral-v1", "stories260K"])
def test_an_id_below_zero_is_no_token(real_tokenizer: RealTokenizer, name: str) -> None:
    assert real_tokenizer(name).token_bytes(-1) == b""


def test_special_tokens_are_shown_when_asked_for(real_tokenizer: RealTokenizer) -> None:
    tokenizer = real_tokenizer("bytes")
    ids = tokenizer.encode("a<|im_end|>b")
    assert ids == [97, 258, 98]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


def test_an_embedding_with_room_for_every_token_fits(real_tokenizer: RealTokenizer) -> None:
    check_fits(real_tokenizer("bytes"), 259)
    check_fits(real_tokenizer("bytes"), 304)


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers(real_tokenizer: RealTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"259 token ids.*only 258 rows"):
        check_fits(real_tokenizer("bytes"), 258)


def test_a_folder_without_a_tokenizer_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(TokenizerError, match=r"expected tokenizer\.json, tokenizer\.model, .*found vocab\.txt"):
        load_tokenizer(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not a folder"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}', '{"version": "1.0", "model": {"type": "Mystery"}}'])
def test_a_malformed_tokenizer_json_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json \({len(content)} characters\) is not a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TokenizerError, match="UTF-8 is expected"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(("content", "reason"), [("{", "cannot be read as JSON"), ("[1]", "holds a JSON list, expected an object")])
def test_a_malformed_configuration_file_is_refused_by_name(folder: Path, name: str, content: str, reason: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=f"{name} {reason}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"added_tokens_decoder": ["a"]},
        {"added_tokens_decoder": {"a": {"content": "x"}}},
        {"added_tokens_decoder": {"259": {"content": 5}}},
        {"chat_template": ["a"]},
        {"chat_template": [{"name": "default"}]},
        {"chat_template": {"default": 5}},
    ],
    ids=str,
)
def test_a_configuration_of_another_shape_is_refused_by_name(folder: Path, values: dict[str, object]) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder)


def test_a_broken_sentencepiece_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00broken")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model \(7 bytes\) is not a SentencePiece model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("size", "reason"), [(5000, "breaks off inside piece"), (2000, "breaks off|at least 259"), (0, "holds 0 pieces")])
def test_a_truncated_llama2c_file_is_refused(shared_data: Path, tmp_path: Path, size: int, reason: str) -> None:
    (tmp_path / "tok512.bin").write_bytes((shared_data / FILES["stories260K"][0]).read_bytes()[:size])
    with pytest.raises(TokenizerError, match=reason):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("file", "package"), [("tokenizer.json", "tokenizers"), ("tokenizer.model", "sentencepiece")])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, file: str, package: str) -> None:
    """In a fresh interpreter that refuses to import the package."""
    (tmp_path / file).touch()
    code = f"""
import sys, pathlib
sys.modules[{package!r}] = None
from tripod.errors import MissingExtraError
from tripod.text.load_tokenizer import load_tokenizer
try:
    load_tokenizer(pathlib.Path({str(tmp_path)!r}))
except MissingExtraError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"needs the package '{package}'" in said
    assert "pip install 'tripod[engine]'" in said


def test_text_needs_no_optional_package_until_it_is_used() -> None:
    code = "import sys, tripod.text.tokenizer, tripod.text.splitter, tripod.text.stop, tripod.text.detokenizer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "tripod.text.splitter" in loaded
    assert not {"torch", "tokenizers", "sentencepiece", "jinja2", "numpy"} & set(loaded)


def test_two_llama2c_files_are_not_guessed_between(tmp_path: Path) -> None:
    (tmp_path / "tok512.bin").touch()
    (tmp_path / "tokenizer.bin").touch()
    with pytest.raises(TokenizerError, match=r"tok512\.bin, tokenizer\.bin"):
        load_tokenizer(tmp_path)
