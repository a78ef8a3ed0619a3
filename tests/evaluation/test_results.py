"""The expected values are the published files' own, read here by other means, and what SOURCE.md says of each file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tripod.errors import ConfigError
from tripod.evaluation.result_names import OLD_SIZES, evaluated
from tripod.evaluation.results import COLUMNS, read_results, results_of
from tripod.evaluation.table import Table

OLD = {"results": {"piqa": {"acc": 0.5, "acc_stderr": 0.1, "acc_norm": 0.25, "acc_norm_stderr": 0.2}}, "config": {"num_fewshot": 0}}
NEW = {
    "results": {
        "piqa": {"name": "piqa", "alias": "piqa", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.1},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"},
    },
    "n-shot": {"piqa": 0, "gsm8k": 5},
    "config": {"model": "hf", "model_args": {"pretrained": "EleutherAI/pythia-160m-seed3", "revision": "step512"}},
}


def test_old_and_new_files_give_the_same_rows() -> None:
    old, new = (Table.of(results_of(content, "a.json")).where(task="piqa", metric="acc") for content in (OLD, NEW))
    assert old.column("value") == new.column("value") == [0.5]
    assert old.column("stderr") == new.column("stderr") == [0.1]
    assert old.column("filter") == [None]
    assert new.column("filter") == ["none"]
    assert [(row["task"], row["metric"]) for row in results_of(NEW, "a.json")] == [("piqa", "acc"), ("gsm8k", "exact_match")]


def test_a_new_file_says_filters_and_the_shots_of_each_task() -> None:
    [row] = Table.of(results_of(NEW, "results_2026-01-01T00-00-00.json")).where(task="gsm8k")
    assert (row["filter"], row["value"], row["stderr"], row["shots"]) == ("strict-match", 0.25, None, 5)
    assert (row["model"], row["size"], row["variant"], row["step"]) == ("pythia-160m-seed3", "160m", "seed3", 512)


@pytest.mark.parametrize(
    ("folder", "name", "model", "step", "tokens", "shots", "run"),
    [
        ("pythia-v1/pythia-1b-bf16/zero-shot", "1b-bf16-5shot_step512", "pythia-1b", 512, 512 << 21, 0, "base"),  # misnamed: zero shots
        (
            "pythia-v0/pythia-1.4b/zero-shot",
            "pythia-1.4b-0shot-global_step71500_eval_results_1",
            "pythia-1.4b",
            71500,
            71500 << 22,
            0,
            "base",
        ),
        ("pythia-v0/pythia-410m/zero-shot", "410m-global_step1500", "pythia-410m", 1500, 1500 << 22, 0, "base"),  # batches of 4M tokens
        ("pythia-v0/pythia-160m-deduped/five-shot", "160m-step1500", "pythia-160m-deduped", 1500, 1500 << 22, 5, "base"),
        ("pythia-v0/pythia-1b/zero-shot", "1b-global_step3000", "pythia-1b", 3000, 3000 << 21, 0, "base"),
        ("other", "pythia-70m-5shot_step3", "pythia-70m", 3, 3 << 21, 5, "base"),
        ("other", "pythia-70m_2026-01-01T00_00_07", "pythia-70m", None, None, None, "base"),  # a time is no step
        ("pythia-v1/pythia-70m-0.25MtokBS/five-shot", "70m-0.25MtokBS_step1144000", "pythia-70m", 1144000, 1144000 << 18, 5, "base"),
        ("bias-evals", "intervention-1.3b-deduped-step67000_eval", "pythia-1.4b-deduped", 67000, 67000 << 22, None, "intervention"),
        (
            *("bias-evals/winobias/intervene_21/1.4B", "eval_results_1.4b-deduped-long_114000"),
            *("pythia-1.4b-deduped", 114000, 114000 << 21, None, "long-intervention"),
        ),
    ],
)
def test_a_name_says_what_was_evaluated(
    folder: str, name: str, model: str, step: int | None, tokens: int | None, shots: int | None, run: str
) -> None:
    what = evaluated(f"evals/{folder}/{name}.json", {})
    assert (what.model, what.step, what.tokens, what.shots, what.run) == (model, step, tokens, shots, run)


def test_the_folder_is_right_about_shots_where_the_configuration_is_not() -> None:
    assert evaluated("evals/pythia-v0/pythia-70m/five-shot/x-5shot-global_step3000.json", {"num_fewshot": 0}).shots == 5


def test_a_model_of_others_keeps_its_name() -> None:
    what = evaluated("results/some.json", {"model_args": "pretrained=org/other-7b,revision=main", "num_fewshot": 3})
    assert (what.model, what.suite, what.shots, what.step) == ("org/other-7b", None, 3, None)


def test_of_two_results_the_newest_counts(tmp_path: Path) -> None:
    for name, value in (("results_2026-01-02T00-00-00.json", 2.0), ("results_2026-01-01T00-00-00.json", 1.0)):
        content = json.loads(json.dumps(NEW))
        content["results"]["piqa"]["acc,none"] = value
        (tmp_path / name).write_text(json.dumps(content))
    assert read_results([tmp_path]).where(task="piqa").column("value") == [2.0]
    assert sorted(read_results([tmp_path], keep_repeated=True).where(task="piqa").numbers("value")) == [1.0, 2.0]


def test_times_of_the_first_release_begin_with_the_month_and_a_standard_error_counts_for_more(tmp_path: Path) -> None:
    for time, acc in (("02-01-2023-00-00-00", {"acc": 0.2}), ("01-30-2023-00-00-00", {"acc": 0.1})):
        (tmp_path / f"pythia-70m-step5_eval_results_{time}.json").write_text(json.dumps({"results": {"piqa": acc}}))
    assert read_results([tmp_path]).column("value") == [0.2]
    (tmp_path / "pythia-70m-step5_eval_results_01-01-2022-00-00-00.json").write_text(
        json.dumps({"results": {"piqa": {"acc": 0.3, "acc_stderr": 0.1}}})
    )
    assert read_results([tmp_path]).column("value") == [0.3]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_our_own_table_is_read_back(tmp_path: Path, suffix: str) -> None:
    rows = [{"model": "a", "step": 1, "task": "piqa", "metric": "acc", "value": 0.5, "stderr": 0.1, "shots": 0, "num_items": 4}]
    Table.of(rows).write(tmp_path / f"table{suffix}")
    [row] = read_results([tmp_path / f"table{suffix}"])
    assert tuple(row) == COLUMNS
    assert {name: row[name] for name in ("model", "step", "task", "value", "run")} == {
        "model": "a", "step": 1, "task": "piqa", "value": 0.5, "run": "base",
    }  # fmt: skip


def test_our_table_and_theirs_are_written_as_one(tmp_path: Path) -> None:
    """Columns of one type each, as Parquet has them: what is a name in one is no number in the other."""
    own = {"model": "a", "step": 1, "size": 231_168, "task": "piqa", "metric": "acc", "value": 0.5}
    Table.of([own]).write(tmp_path / "ours.jsonl")
    (tmp_path / "pythia-70m_step3.json").write_text(json.dumps(OLD))
    both = read_results([tmp_path]).where(metric="acc")
    both.write(tmp_path / "both.parquet")
    assert sorted(Table.read(tmp_path / "both.parquet").column("size"), key=str) == ["231168", "70m"]


def test_a_file_without_results_is_an_error_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: no file there holds results"):
        read_results([tmp_path / "empty"])
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ConfigError, match="holds no results"):
        read_results([tmp_path / "a.json"])
    with pytest.raises(ConfigError, match=r"b\.json cannot be read as results"):
        read_results([tmp_path / "b.json"])


# --- Pythia's published files


@pytest.fixture(scope="module")
def published(shared_data: Path) -> list[dict[str, Any]]:
    """What SOURCE.md's lines say, 1,172 files."""
    folder = shared_data / "pythia-evals"
    return [json.loads(line) for name in ("v1", "bias") for line in gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8")]


def test_every_published_value_comes_out_once(shared_data: Path, published: list[dict[str, Any]]) -> None:
    folder = shared_data / "pythia-evals"
    table = read_results([folder / "v1.jsonl.gz", folder / "bias.jsonl.gz"], keep_repeated=True)
    expected = []
    for one in published:
        results = one["json"].get("results")
        if isinstance(results, dict):
            expected += [
                (one["path"], task, None, metric, value, values.get(f"{metric}_stderr"))
                for task, values in results.items()
                for metric, value in values.items()
                if not metric.endswith("_stderr")
            ]
        else:
            listed = results if results is not None else one["json"]["table_results"].values()
            expected += [(one["path"], each["task_name"], each["prompt_name"], "em", each["em"], each["em_stderr"]) for each in listed]
    found = [tuple(row[name] for name in ("source", "task", "prompt", "metric", "value", "stderr")) for row in table]
    assert len(found) == len(set(found)) > 20_000
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_what_was_evaluated_agrees_with_the_catalogue_but_for_the_known_faults(published: list[dict[str, Any]]) -> None:
    num_misnamed = num_baselines = 0
    for one in published:
        config = one["json"].get("config") or {"model_args": one["json"].get("model_args", {})}
        what = evaluated(one["path"], config)
        assert (what.suite, what.step, what.run) == (one["suite"], one["step"], one["run"]), one["path"]
        assert what.size == OLD_SIZES.get(one["size"], one["size"])
        if what.deduped != one["dedup"]:
            assert "/winobias/" in one["path"]
            assert "dedup" in config["model_args"]["load"]
            num_baselines += 1
        if what.shots is not None and what.shots != one["shots"]:
            assert "1b-bf16-5shot_step" in one["path"]
            num_misnamed += 1
    assert num_misnamed == 4
    assert num_baselines == 90  # WinoBias files of three sizes


def test_the_long_table_agrees_with_the_files_and_adds_the_first_suite(shared_data: Path) -> None:
    folder = shared_data / "pythia-evals"
    keys = ("suite", "model", "size", "run", "variant", "shots", "step", "task", "metric")
    long = read_results([folder / "headline.csv"])
    of_files = {tuple(row[name] for name in keys): row["value"] for row in read_results([folder / "v1.jsonl.gz"])}
    assert [row for row in long.where(suite="pythia-v1") if of_files[tuple(row[name] for name in keys)] != row["value"]] == []
    assert len(long.where(suite="pythia-v0", shots=0, task="piqa", metric="acc")) == 16 * 15


def test_original_files_are_read_as_they_are(shared_data: Path) -> None:
    table = read_results([shared_data / "pythia-evals" / "originals"])
    assert {row["suite"] for row in table} == {"pythia-v0", "pythia-v1", "bias-evals"}
    [lambada] = table.where(model="pythia-70m", step=83000, task="lambada_openai", metric="ppl")
    path = shared_data / "pythia-evals/originals/pythia-v1/pythia-70m/zero-shot/70m_step83000.json"
    assert lambada["value"] == json.loads(path.read_text())["results"]["lambada_openai"]["ppl"]
    assert len(table.where(metric="em")) == 8
