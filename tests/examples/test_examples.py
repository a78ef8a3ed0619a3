"""The examples run as their first lines say, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HANDBOOK = ROOT / "tests" / "data" / "handbook"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random GPT-NeoX with one token a byte."""
    pytest.importorskip("torch")
    from tripod.models.gpt_neox import GPTNeoXConfig
    from tripod.models.initialize import random_language_model
    from tripod.models.save import save_checkpoint
    from tripod.ops.rope import RopeConfig
    from tripod.text.byte_level import VOCAB_SIZE, write_byte_tokenizer

    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        max_positions=256,
        rope=RopeConfig(rotary_dim=4),
    )
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(random_language_model(config, seed=0), folder)
    write_byte_tokenizer(folder)
    return str(folder)


def test_a_folder_is_asked() -> None:
    out = run("ask_a_folder.py", str(HANDBOOK), "How are pointing errors corrected?")
    assert out.startswith("3 documents read, 0 could not be\n")
    assert "Pointing errors are corrected with a model of seven terms." in out
    assert "telescope.rst:10" in out
    assert "    retrieve: " in out


def test_a_checkpoint_is_used_in_this_process(model: str) -> None:
    out = run("local_checkpoint.py", model, "Once upon a time")
    assert "259 tokens, at most 256" in out
    assert "(length, 32 tokens)" in out
    assert "log-probability of that: -" in out


def test_a_checkpoint_is_served_and_called(model: str) -> None:
    pytest.importorskip("openai")
    out = run("serve_and_call.py", model)
    assert f"models: ['{model}']" in out
    assert re.search(r"^chat: .* CompletionUsage\(completion_tokens=\d+", out, re.MULTILINE)
