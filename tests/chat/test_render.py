"""A conversation as token ids: special tokens stand where the template puts them, once."""

from __future__ import annotations

import json
from pathlib import Path

from tripod.chat.render import prompt_ids
from tripod.messages import user
from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer

BOS = 256  # <|endoftext|>, as in `write_byte_tokenizer`


def test_the_template_alone_decides_where_a_text_begins(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    token, sequence = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special_tokens = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [BOS], "tokens": ["<|endoftext|>"]}}
    post_processor = {"type": "TemplateProcessing", "single": [token, sequence], "pair": [sequence], "special_tokens": special_tokens}
    for name, change in (
        ("tokenizer.json", {"post_processor": post_processor}),
        ("tokenizer_config.json", {"bos_token": "<|endoftext|>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"}),
    ):
        file = tmp_path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hi") == [BOS, *b"Hi"]  # a plain text gets one
    assert prompt_ids([user("Hi")], tokenizer) == [BOS, *b"Hi"]
    assert prompt_ids([user("Hi")], tokenizer, "plain") == [BOS, *b"user: Hi\nassistant:"]
