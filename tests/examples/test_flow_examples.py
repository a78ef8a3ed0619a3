"""The examples of flows and durable executions run as their first lines say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.examples.test_examples import HANDBOOK, ROOT, run


def test_a_pipeline_of_ones_own_takes_no_more_lines_than_the_job_deserves() -> None:
    tree = ast.parse((ROOT / "examples" / "hybrid_pipeline.py").read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "pipeline"]
    assert len(found.body) <= 4
    out = run("hybrid_pipeline.py", str(HANDBOOK), "pointing errors of the telescope").splitlines()
    assert out[0].startswith("hybrid(question: str, num_candidates: int, ")
    assert out[0].endswith(" -> list[Passage]: search -> rerank")
    scores = [int(line.split()[0]) for line in out[1:]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "telescope.rst" in out[1]


def test_an_order_waits_for_a_person_and_goes_on_in_another_process(tmp_path: Path) -> None:
    def order(*answer: str) -> str:
        command = [sys.executable, str(ROOT / "examples" / "durable_order.py"), str(tmp_path / "orders.db"), "lamp", *answer]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    assert order() == "looking up lamp\nwaiting ('approval',)\n"
    assert order() == "waiting ('approval',)\n"
    told = order("yes").splitlines()
    assert told[0].startswith("charging 40 under ")
    assert told[1] == "done receipt for 40"
    assert order() == "done receipt for 40\n"


def test_answers_are_evaluated_and_compared_with_an_earlier_report(tmp_path: Path) -> None:
    tree = ast.parse((ROOT / "examples" / "evaluate_answers.py").read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef) and node.name == "evaluate"]
    assert len(found.body) <= 4
    lines = [
        {"question": "How are pointing errors corrected?", "answers": ["a model of seven terms"]},
        {"question": "Who won the football game?", "answers": []},
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, str(ROOT / "examples" / "evaluate_answers.py"), str(HANDBOOK), "cases.jsonl"]
    first = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, cwd=tmp_path).stdout
    assert first.startswith("answers: 2 cases\n")
    assert "exact_match" in first
    again = subprocess.run([*command, "report.json"], capture_output=True, text=True, check=True, timeout=100, cwd=tmp_path).stdout
    assert len(again.splitlines()) > len(first.splitlines())
