"""The byte tokenizer that we write: an id of a byte is the byte, and transformers reads the same files."""

from __future__ import annotations

from pathlib import Path

from tripod.messages import assistant, system, user
from tripod.text.byte_level import CHAR_OF_BYTE, write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer


def test_the_id_of_a_byte_is_the_byte(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("é\n") == [0xC3, 0xA9, 0x0A]
    assert [tokenizer.token_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(CHAR_OF_BYTE) == sorted(ByteLevel.alphabet())
    assert (CHAR_OF_BYTE[0x20], CHAR_OF_BYTE[0x0A], CHAR_OF_BYTE[0x41]) == ("Ġ", "Ċ", "A")


def test_transformers_reads_the_same_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    write_byte_tokenizer(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, PreTrainedTokenizerFast)
    text = "Grüße, 世界!  <|im_start|>tabs\tand\r\nlines<|im_end|>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert theirs.eos_token_id in ours.eos_ids
    conversation = [system("Be brief."), user("Hi\n"), assistant("Hello."), user("Bye")]
    expected = theirs.apply_chat_template(
        [{"role": m.role, "content": m.text} for m in conversation], tokenize=False, add_generation_prompt=True
    )
    assert ours.chat_template is not None
    assert ours.chat_template.render(conversation) == expected


def test_a_turn_of_the_template_is_chatml(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    template = load_tokenizer(tmp_path).chat_template
    assert template is not None
    assert template.render([user("Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "a")
    first = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    write_byte_tokenizer(tmp_path / "a")
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == first
    assert set(first) == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
