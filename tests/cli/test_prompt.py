"""`tripod prompt show`: the text, the tokens and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tripod.text.byte_level import write_byte_tokenizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.jinja"
    path.write_text("[system]\nBe brief.\n\n[user]\n{{ question }}\n")
    return path


def test_a_file_is_filled_and_printed(tripod: Command, file: Path) -> None:
    outcome = tripod("prompt", "show", file, "--set", "question=What is [bold]?")
    assert (outcome.code, outcome.out) == (0, "[system]\nBe brief.\n\n[user]\nWhat is [bold]?\n")


def test_its_tokens_are_counted_shown_and_priced(tripod: Command, file: Path, tmp_path: Path) -> None:
    """The tokenizer has a token for each byte, so the count can be made by hand."""
    write_byte_tokenizer(tmp_path)
    text = "system: Be brief.\nuser: Why?\nassistant:"
    outcome = tripod(
        "prompt", "show", file, "--set", "question=Why?", "--model", tmp_path, "--chat-template", "plain", "--tokens", "--price", "2"
    )
    assert outcome.code == 0
    count = outcome.out.splitlines()[-1]
    assert "|W|h|y|?|" in outcome.out
    num_tokens = int(count.split()[0])
    assert num_tokens in (len(text), len(text) + 1)  # a byte-level tokenizer may put a beginning in front
    assert count == f"{num_tokens} tokens, {num_tokens * 2 / 1000000:.6f} at 2 for a million"


def test_a_function_that_makes_a_prompt_is_called(tripod: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_prompts.py").write_text(
        "from tripod import Prompt\ndef ask(question: str) -> Prompt:\n    return Prompt.of(question + '!')\nanswer = 42\n"
    )
    monkeypatch.chdir(tmp_path)
    assert tripod("prompt", "show", "own_prompts:ask", "--set", "question=Why").out == "[user]\nWhy!\n"
    for arguments, complaint in [
        (("own_prompts:ask",), "missing 1 required positional argument: 'question'"),
        (("own_prompts:none",), "cannot be imported"),
        (("none.jinja",), "cannot be imported"),
        (("own_prompts:ask", "--set", "question"), "is not NAME=VALUE"),
        (("own_prompts:ask", "--set", "question=Why", "--tokens"), "name it with --model"),
    ]:
        outcome = tripod("prompt", "show", *arguments)
        assert outcome.code == 2
        assert complaint in outcome.err
