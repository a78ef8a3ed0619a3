"""`tripod demo`: all acts hold what they say, and a claim that does not hold is an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_act_1_answers_from_the_python_that_runs_it(tripod: Command) -> None:
    outcome = tripod("demo", "--act", "1")
    assert outcome.code == 0, outcome.err
    found = re.search(r"answered: 3/3\s+quotations found in the files where they are said to be: (\d+)/(\d+)", outcome.out)
    assert found is not None
    assert found[1] == found[2] != "0"
    assert "abstained from what is not there: 1/1" in " ".join(outcome.out.split())
    assert "No language model was used" in outcome.out
    assert "search is by words only: this test has no embedder" in " ".join(outcome.out.split())
    assert "it should return a true value" in " ".join(outcome.out.split())


def test_acts_2_and_3_train_a_model_and_serve_it(tripod: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a page of text instead of a whole library, for two seconds instead of sixty."""
    pytest.importorskip("torch")
    pytest.importorskip("openai")

    def write_pages(path: Path) -> None:
        pages = [f"Page {number}. " + "The function returns a string of the lantern by the river.\n" * 40 for number in range(60)]
        lines = (json.dumps({"text": page, "file": f"{number}.py"}) for number, page in enumerate(pages))
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    monkeypatch.setattr("tripod.cli.python_documentation.write_python_documentation", write_pages)
    monkeypatch.setattr("tripod.cli.demo_documents.ask_python", lambda console: [])
    monkeypatch.setattr("tripod.cli.demo_study.SECONDS", 2.0)
    outcome = tripod("demo")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "the loss fell: 1/1" in outcome.out
    found = re.search(r"texts of step \d+ found in the files where they are said to be: (\d+)/(\d+)", outcome.out)
    assert found is not None
    assert found[1] == found[2]
    assert int(found[2]) >= 16  # a text a row at least
    assert "steps 4 to 8 trained a second time: the same bits: 1/1" in outcome.out
    assert re.search(r"=== row \d+\n  --- document \d+, tokens \d+ to \d+, python-documentation.jsonl:\d+", outcome.out)
    assert "that act 2 trained" in outcome.out
    assert "same tokens: 3/3" in outcome.out


def test_act_3_serves_the_same_tokens_to_the_openai_client(tripod: Command) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("openai")
    outcome = tripod("demo", "--act", "3")
    assert outcome.code == 0, outcome.err
    assert "same tokens: 3/3" in outcome.out
    preempted = re.search(r"KV pool of 512 tokens\s+\d+\s+\d+\s+(\d+)\s+same", outcome.out)
    assert preempted is not None
    assert int(preempted[1]) > 0


def test_a_claim_that_does_not_hold_is_an_error(tripod: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("openai")
    monkeypatch.setattr("tripod.cli.demo_serving.SMALL_POOL", 8192)  # room for all, so that nothing is preempted
    outcome = tripod("demo", "--act", "3")
    assert outcome.code == 1
    assert "a claim does not hold: a KV pool of 8192 tokens was to preempt requests, and none was" in outcome.err


def test_act_3_without_torch_says_what_is_missing() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom tripod.cli.app import main; main(['demo', '--act', '3'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipped: not installed: torch; run: pip install 'tripod[engine]'" in done.stdout


def test_a_folder_is_asked_without_torch(handbook: object) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from tripod.cli.app import main; main(['ask', {str(handbook)!r}, 'How are pointing errors corrected?'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Pointing errors are corrected with a model of seven terms." in done.stdout
    assert "search is by words only: torch is not installed" in done.stderr
