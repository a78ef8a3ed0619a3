"""`tripod eval answers|retrieval`: a report, a page, and an exit status that a build can rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tripod.cli.app import main

HANDBOOK = Path(__file__).parents[1] / "data" / "handbook"
ANSWERS = [
    {"id": "dome", "question": "When does the dome close?", "answers": ["faster than 18 metres a second"], "sources": ["telescope.rst"]},
    {"id": "france", "question": "What is the capital of France?", "answers": []},
]
QUERIES = [
    *({"query": query, "relevant": ["telescope.rst"]} for query in ("pointing errors", "dome closes", "wind metres a second")),
    *({"query": query, "relevant": ["storage.md"]} for query in ("exposure deleted", "ten years", "exposure after years")),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_answers_are_judged_kept_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = written(tmp_path / "cases.jsonl", ANSWERS)
    assert run("eval", "answers", HANDBOOK, cases, "--out", tmp_path / "a.json", "--html", tmp_path / "a.html") == 0
    shown = capsys.readouterr().out
    assert "answers: 2 cases" in shown
    assert re.search(r"^  right +1\.000 \[1\.000, 1\.000\]$", shown, re.MULTILINE)
    assert len({line.index("[") for line in shown.splitlines() if "[" in line}) == 1  # one column
    assert "<svg" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_worse_retrieval_fails_against_its_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = written(tmp_path / "cases.jsonl", QUERIES)
    assert run("eval", "retrieval", HANDBOOK, cases, "--mode", "bm25", "--out", tmp_path / "good.json") == 0
    good = json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))
    assert good["values"]["recall@10"] == [1.0] * 6
    other = tmp_path / "other"
    other.mkdir()
    (other / "moon.md").write_text("The moon is far away.")
    assert run("eval", "retrieval", other, cases, "--mode", "bm25", "--baseline", tmp_path / "good.json") == 1
    assert "worse than the baseline: ndcg@10, recall@10, mrr@10, map@10" in capsys.readouterr().err


def test_a_file_that_holds_no_cases_is_a_mistake_of_the_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "answers", HANDBOOK, written(tmp_path / "cases.jsonl", [{"query": "a"}])) == 2
    assert "expected a text" in capsys.readouterr().err


def test_an_index_on_a_server_is_named_by_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psycopg", reason="run: pip install 'tripod[postgres]'")
    cases = written(tmp_path / "cases.jsonl", ANSWERS)
    assert run("eval", "answers", "postgresql://nobody@127.0.0.1:1/none", cases) != 0  # nothing listens there
    assert "postgresql://nobody@127.0.0.1:1/none cannot be opened" in " ".join(capsys.readouterr().err.split())
