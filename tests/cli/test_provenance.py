"""`tripod provenance`, `tripod contamination` and `tripod ask --provenance`, on a model whose training is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.cli.conftest import Command
from tests.rag.planted import ABSENT, HANDBOOK, NUM_STEPS, QUESTION, SENTENCE, Planted


def test_one_command_prints_the_chain_from_the_sentence_to_the_batch(tripod: Command, planted: Planted) -> None:
    asked = ("ask", HANDBOOK, QUESTION, "--model", planted.address, "--chat-template", "plain", "-k", "1", "--max-tokens", "60")
    outcome = tripod(*asked, "--provenance")
    assert outcome.code == 0, outcome.err
    chain = outcome.out[outcome.out.index(f"'\u201c{SENTENCE}") :]
    assert "passage   [1] telescope.rst:4, The telescope" in chain
    assert re.search(r"engine    steps \d+-\d+, \d+ tokens", chain)
    assert f"model     {planted.address}" in chain
    place = re.search(r"step (\d+), row (\d+), column (\d+): document (\d+), token (\d+), corpus.jsonl:(\d+)", chain)
    assert place is not None
    step, row, column, document, token, line = map(int, place.groups())
    assert line == document + 1
    order = planted.run.order()
    assert (step, row, column) in {(at, one.row, one.column) for at, one in order.steps_of(document, token)}
    assert SENTENCE in json.loads(planted.corpus.read_text(encoding="utf-8").splitlines()[line - 1])["text"]


def test_the_chain_as_json(tripod: Command, planted: Planted) -> None:
    asked = ("ask", HANDBOOK, QUESTION, "--model", planted.address, "--chat-template", "plain", "-k", "1", "--max-tokens", "60")
    [origin] = json.loads(tripod(*asked, "--provenance", "--json").out)["origins"]
    assert {"number": 1, "source": "telescope.rst", "line": 4, "page": None} in origin["passages"]
    assert origin["training"]["model"] == planted.address
    assert len(origin["engine_steps"]) == origin["training"]["num_tokens"]
    assert origin["training"]["spans"][0]["num_seen"] >= len(origin["training"]["spans"][0]["steps"]) > 1


def test_a_text_is_traced_to_the_lines_of_the_corpus_that_hold_it(tripod: Command, planted: Planted) -> None:
    outcome = tripod("provenance", f" {SENTENCE}", "--run", planted.address, "--json", "--places", "99")
    [span] = [span for span in json.loads(outcome.out)["spans"] if span["text"] == f" {SENTENCE}"]
    assert {place["line"] for place in span["first"]} <= set(planted.note_lines)
    assert max(span["steps"]) < NUM_STEPS
    shown = tripod("provenance", SENTENCE, "--run", planted.address).out
    assert f"{planted.address}: " in shown
    assert "corpus.jsonl:" in shown


def test_a_text_that_was_not_read_is_said_to_be_so(tripod: Command, planted: Planted) -> None:
    outcome = tripod("provenance", ABSENT, "--run", planted.address)
    assert outcome.code == 0
    assert "stand in 0 stretches" in outcome.out


def test_leaked_items_are_counted(tripod: Command, planted: Planted, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"q": "?", "text": text}) + "\n" for text in (SENTENCE, ABSENT)), encoding="utf-8")
    outcome = tripod("contamination", items, "--run", planted.address)
    assert "of 2 items, 1 hold 13 tokens" in outcome.out
    assert "item 1: 'The dome closes" in outcome.out
    found = json.loads(tripod("contamination", items, "--run", planted.address, "--json").out)["items"]
    assert [one["num_covered"] > 0 for one in found] == [True, False]
    wrong = tripod("contamination", items, "--run", planted.address, "--fields", "question")
    assert (wrong.code, "line 1: expected an object with question" in wrong.err) == (2, True)


def test_what_cannot_be_traced_is_refused_in_words(tripod: Command, planted: Planted, tmp_path: Path) -> None:
    for arguments, words in (
        (("provenance", "text", "--run", tmp_path), "is not a training run"),
        (("provenance", "text", "--run", f"{planted.run.folder}@step999"), "step 999 was asked for; the run has the checkpoints"),
        (("provenance", "text", "--run", f"{planted.run.folder}@stepX"), "names no step"),
        (("ask", HANDBOOK, QUESTION, "--provenance"), "name the model: --model RUN@stepN"),
    ):
        outcome = tripod(*arguments)
        assert (outcome.code, words in outcome.err) == (2, True), outcome.err
