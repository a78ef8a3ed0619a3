"""The GPT-2 byte alphabet, and a tokenizer with one token a byte."""

from __future__ import annotations

import json
from pathlib import Path


def _byte_alphabet() -> list[str]:
    """One printable character for each byte value (Radford et al. 2019, "Language models are unsupervised multitask learners").

    Printable Latin-1 bytes stand for themselves; the others, in order, get the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


CHAR_OF_BYTE = _byte_alphabet()  # 256 characters
BYTE_OF_CHAR = {char: byte for byte, char in enumerate(CHAR_OF_BYTE)}

END_OF_TEXT = "<|endoftext|>"  # id 256: between documents, and the end of a completion
TURN_START = "<|im_start|>"  # id 257
TURN_END = "<|im_end|>"  # id 258: the end of a chat turn
VOCAB_SIZE = 259

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose id of a byte is the byte, so that every text has a token sequence and needs no training.

    Writes tokenizer.json, tokenizer_config.json (special tokens, a ChatML template) and generation_config.json (both ends of
    a generation). Ids 0-255 are bytes; 256, 257, 258 are `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`.

    Args:
        folder: made if absent; files of these names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added_tokens = [{"id": 256 + i, "content": token, **flags} for i, token in enumerate((END_OF_TEXT, TURN_START, TURN_END))]
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {char: byte for byte, char in enumerate(CHAR_OF_BYTE)},
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": [256, 258]})


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
