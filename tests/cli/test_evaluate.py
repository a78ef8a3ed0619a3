"""`tripod eval` and `tripod study` as a user calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.engine.tiny_models import tiny_model
from tests.evaluation.tasks.conftest import CONFIG
from tripod.evaluation.tasks.open_answer import TEXT_METRICS
from tripod.models.save import save_checkpoint
from tripod.text.byte_level import write_byte_tokenizer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints."""
    folder = tmp_path_factory.mktemp("eval") / "small"
    for step in (1, 2):
        save_checkpoint(tiny_model(CONFIG, seed=step), folder / f"step{step}")
        write_byte_tokenizer(folder / f"step{step}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "premise": "It rained.",
            "choice1": "The road was wet.",
            "choice2": "The sun was hot.",
            "question": "effect",
            "idx": 0,
            "label": 0,
        },
        {"premise": "He slept.", "choice1": "It was noon.", "choice2": "He was tired.", "question": "cause", "idx": 1, "label": 1},
    ]
    (folder / "copa.validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "words.txt").write_text("some words to read\n")
    return folder


def test_tasks_without_names_are_listed(tripod: Command) -> None:
    outcome = tripod("eval", "tasks")
    assert outcome.code == 0
    assert "lambada_openai           perplexity, acc" in outcome.out


def test_many_checkpoints_give_one_table(tripod: Command, run_folder: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("eval", "tasks", run_folder, "--tasks", "copa", "--data", data, "--text", data / "words.txt", "--kept", tmp_path / "kept")
    outcome = tripod(*arguments, "--out", tmp_path / "table.csv")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [(row["model"], row["step"], row["task"], row["metric"]) for row in rows if row["task"] == "copa"] == [
        ("small", "1", "copa", "acc"), ("small", "2", "copa", "acc"),
    ]  # fmt: skip
    assert sum(row["metric"] == "bits_per_byte" for row in rows) == 2
    shown = tripod(*arguments)  # not on a terminal: no name and no number is cut
    assert {line.split()[-3] for line in shown.out.splitlines() if "words" in line} == {*TEXT_METRICS}
    again = tripod(*arguments, "--json")
    assert [row["value"] for row in json.loads(again.out)] == [float(row["value"]) for row in rows]


def test_results_are_read_from_what_was_written(tripod: Command, run_folder: Path, data: Path, tmp_path: Path) -> None:
    tripod("eval", "tasks", f"{run_folder}@step2", "--tasks", "copa", "--data", data, "--out", tmp_path / "ours.parquet")
    (tmp_path / "theirs.json").write_text(json.dumps({"results": {"copa": {"acc": 0.25, "acc_stderr": 0.1}}, "config": {}}))
    outcome = tripod("eval", "results", tmp_path / "ours.parquet", tmp_path / "theirs.json", "--metrics", "acc", "--json")
    assert outcome.code == 0, outcome.err
    assert [(row["model"], row["task"]) for row in json.loads(outcome.out)] == [("small", "copa"), ("theirs", "copa")]
    none = tripod("eval", "results", tmp_path / "ours.parquet", "--tasks", "copa, coppa", "--step", "2")
    assert none.code == 2
    assert "no result has the task coppa; there are copa" in none.err


def test_studies_are_listed_and_one_is_run(tripod: Command, run_folder: Path, data: Path, tmp_path: Path) -> None:
    listed = tripod("study")
    assert "learning-curves" in listed.out
    assert {"shots=0,4,16", "unseen=false", "limit=none"} <= set(listed.out.split())  # as --set takes them
    arguments = ("study", "learning-curves", run_folder, "--set", "tasks=copa", "--data", data, "--out", tmp_path / "out")
    outcome = tripod(*arguments)
    assert outcome.code == 0, outcome.err
    assert "table.csv: 2 rows" in outcome.out
    assert "2 checkpoints measured" in outcome.err
    assert "0 checkpoints measured, 2 measured before" in tripod(*arguments).err


def test_a_setting_that_is_none_is_named(tripod: Command, run_folder: Path, tmp_path: Path) -> None:
    wrong = tripod("study", "learning-curves", run_folder, "--set", "sizes=3", "--out", tmp_path)
    assert wrong.code == 2
    assert "has no setting sizes; it has tasks, limit, shots, data" in wrong.err
    absent = tripod("study", "learning-curves", run_folder, "--out", tmp_path)
    assert absent.code == 2
    assert "reads a file; give the folder with the data sets: --data FOLDER" in absent.err
    spelled = tripod("study", "learning-curves", run_folder, "--set", "tasks=copa", "--set", "limit=x", "--out", tmp_path)
    assert "--set limit=x: expected int" in spelled.err
    unknown = tripod("study", "memorisation", run_folder)  # before it asks for a folder
    assert "there is no study 'memorisation'; there are" in unknown.err
    of_no_files = tripod("study", "training-maps", run_folder, "--data", tmp_path, "--out", tmp_path)
    assert "has no setting data" in of_no_files.err
    of_files = tripod("study", "published", "all", "--step", "3", "--data", tmp_path, "--out", tmp_path)
    assert "--set, --step and --kept are of studies of checkpoints" in of_files.err


def test_a_published_table_is_written_as_a_card(tripod: Command, shared_data: Path, tmp_path: Path) -> None:
    outcome = tripod("study", "published", "polypythias-maps", "--data", shared_data, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == "polypythias-maps: 9 equal, 0 differs, 0 not checkable"
    assert (tmp_path / "polypythias-maps.md").is_file()
