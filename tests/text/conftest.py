"""Real tokenizers, each in a folder of its own as it would lie beside a model, and one that we write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer

FILES = {
    "pythia": ("tokenizers/pythia-20B_tokenizer.json", "tokenizer.json"),
    "torchtitan": ("tokenizers/torchtitan-test-tokenizer.json", "tokenizer.json"),
    "gpt2": ("tokenizers/gpt2.json", "tokenizer.json"),
    "mistral-v1": ("tokenizers/mistral-v1.model", "tokenizer.model"),
    "mistral-v3": ("tokenizers/mistral-v3.model", "tokenizer.model"),
    "sentencepiece-test": ("tokenizers/sentencepiece-test_model.model", "tokenizer.model"),
    "t5-test": ("tokenizers/seqio-t5-test.model", "spiece.model"),
    "stories260K": ("stories260K/tok512.bin", "tok512.bin"),
}
SENTENCEPIECE = ("mistral-v1", "mistral-v3", "sentencepiece-test", "t5-test")
ALL = ("bytes", *FILES)


@pytest.fixture(scope="session")
def real_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """Opens one of FILES by name, or "bytes", the tokenizer that we write; each is read once a session."""
    opened: dict[str, Tokenizer] = {}

    def open_(name: str) -> Tokenizer:
        if name not in opened:
            folder = tmp_path_factory.mktemp(name)
            if name == "bytes":
                write_byte_tokenizer(folder)
            else:
                shared: Path = request.getfixturevalue("shared_data")
                source, target = FILES[name]
                (folder / target).symlink_to(shared / source)
                if name == "torchtitan":
                    (folder / "tokenizer_config.json").symlink_to(shared / "tokenizers/torchtitan-test-tokenizer_config.json")
            opened[name] = load_tokenizer(folder)
        return opened[name]

    return open_
