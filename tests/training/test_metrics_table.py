"""The table, read by Arrow, holds what the logs hold."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.conftest import MakeRecipe
from tripod.errors import ConfigError, MissingExtraError
from tripod.training.loop import StepReport, train
from tripod.training.metrics import read_metrics
from tripod.training.metrics_table import COLUMNS, write_metrics_table
from tripod.training.run import Run


def test_every_step_of_every_run_is_a_row_with_what_the_log_says(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    recipe = make_recipe(("num_steps=6", "validation.every=4"))
    runs = [train(recipe).run, train(replace(recipe, run=str(tmp_path / "other"), seeds=replace(recipe.seeds, order=9))).run]
    assert write_metrics_table(runs, tmp_path / "metrics.parquet") == 14  # the beginning and six steps, twice
    rows = parquet.read_table(tmp_path / "metrics.parquet").to_pylist()
    for run, own in zip(runs, (rows[:7], rows[7:]), strict=True):
        records = list(read_metrics(run.metrics_path))
        assert {row["run"] for row in own} == {str(run.folder)}
        assert [{key: row[key] for key in record} for row, record in zip(own, records, strict=True)] == records
        assert [row["valid_loss"] is None for row in own] == [False, True, True, True, False, True, False]
        assert [(row["loss"] is None, row["is_spike"]) for row in own] == [(True, None)] + [(False, False)] * 6


def test_every_thing_that_a_step_reports_has_a_column() -> None:
    report = StepReport(
        step=1, loss=1.0, lr=1.0, grad_norm=1.0, num_tokens=1, seconds=1.0, is_skipped=True, loss_scale=1.0, is_spike=True, valid_loss=1.0,
        num_step_tokens=1, flops=1,
    )  # fmt: skip
    assert ["run", *report.record()] == list(COLUMNS)


def test_another_ending_or_a_run_without_metrics_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run = Run.begin(make_recipe())
    with pytest.raises(ConfigError, match=r"does not end in \.parquet"):
        write_metrics_table([run], tmp_path / "metrics.csv")
    with pytest.raises(ConfigError, match="has measured nothing yet"):
        write_metrics_table([run], tmp_path / "metrics.parquet")
    assert not (tmp_path / "metrics.parquet").exists()


def test_without_pyarrow_the_extra_is_named(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"tripod\[parquet\]"):
        write_metrics_table([Run.begin(make_recipe())], tmp_path / "metrics.parquet")
