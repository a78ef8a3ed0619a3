"""A report's intervals, its file, its page, and the paired comparison that can stand in a test."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tripod.errors import DatasetError
from tripod.evaluation.intervals import bootstrap, bootstrap_of
from tripod.evaluation.report import Report
from tripod.evaluation.report_html import write_html

CASES = tuple(f"q{number}" for number in range(200))
GENERATOR = np.random.default_rng(5)
BEFORE = GENERATOR.random(200)


def report(values: object, **fields: object) -> Report:
    return Report(name="demo <b>", cases=CASES, values={"f1": [float(v) for v in values]}, **fields)  # type: ignore[attr-defined, arg-type]


def test_a_small_loss_on_every_case_is_found_where_the_means_alone_would_hide_it() -> None:
    noise = np.random.default_rng(6).normal(0, 0.01, 200)
    comparison = report(BEFORE - 0.01 + noise).compare(report(BEFORE))
    assert comparison["f1"].is_worse
    assert comparison.worse == ("f1",)
    assert comparison["f1"].is_within(0.02)
    assert not comparison["f1"].is_within(0.005)
    means = report(BEFORE - 0.01).interval("f1"), report(BEFORE).interval("f1")
    assert means[0] is not None
    assert means[1] is not None
    assert means[0].low < means[1].mean < means[0].high  # the unpaired intervals overlap


def test_no_change_is_not_worse_and_noise_is_no_change() -> None:
    assert report(BEFORE).compare(report(BEFORE))["f1"].is_not_worse
    noise = np.random.default_rng(8).normal(0, 0.1, 200)
    difference = report(BEFORE + noise).compare(report(BEFORE))["f1"]
    assert difference.is_not_worse
    assert not difference.is_better


def test_a_false_alarm_comes_about_once_in_forty() -> None:
    generator = np.random.default_rng(9)
    alarms = sum(report(BEFORE + generator.normal(0, 0.1, 200)).compare(report(BEFORE))["f1"].is_worse for _ in range(200))
    assert alarms <= 12  # 5 are expected (2.5 % on this side); 12 or fewer with probability 0.998


def test_cases_too_few_to_tell_from_chance_show_nothing() -> None:
    """Five that all get worse do so by chance in two of 2 ** 5 ways, six in two of 2 ** 6: below one in twenty."""
    for number, is_shown in ((1, False), (5, False), (6, True)):
        now, then = (Report(name="a", cases=CASES[:number], values={"f1": [value] * number}) for value in (0.4, 0.5))
        assert now.compare(then)["f1"].is_worse == then.compare(now)["f1"].is_better == is_shown


def test_of_seconds_fewer_are_better() -> None:
    now = Report(name="a", cases=CASES, values={"seconds": (BEFORE - 0.1).tolist()}, lower_is_better=frozenset({"seconds"}))
    then = Report(name="b", cases=CASES, values={"seconds": BEFORE.tolist()}, lower_is_better=frozenset({"seconds"}))
    assert now.compare(then)["seconds"].is_better
    assert then.compare(now)["seconds"].is_worse
    assert [then.compare(now)["seconds"].is_within(margin) for margin in (0.05, 0.2)] == [False, True]  # it takes 0.1 longer


def test_only_shared_cases_are_compared_and_the_others_are_counted() -> None:
    half = Report(name="half", cases=(*CASES[:100], "new"), values={"f1": [*(BEFORE[:100] + 0.1).tolist(), 0.0]})
    comparison = half.compare(report(BEFORE))
    assert (comparison["f1"].num_cases, comparison.num_new, comparison.num_gone) == (100, 1, 100)
    assert comparison["f1"].interval.mean == pytest.approx(0.1)
    with pytest.raises(DatasetError, match="no case in common"):
        Report(name="other", cases=("x",), values={"f1": [1.0]}).compare(half)
    with pytest.raises(DatasetError, match="'f2' is not in both"):
        _ = comparison["f2"]


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    kept = replace(report(np.round(BEFORE, 6)), settings={"k": 3}, curves={"c": ("x", "y", [0.0, 1.0], [1.0, 0.0])})
    kept.save(tmp_path / "reports" / "a.json")
    loaded = Report.load(tmp_path / "reports" / "a.json")
    assert loaded.values == kept.values
    assert loaded.interval("f1") == kept.interval("f1")
    assert kept.compare(tmp_path / "reports" / "a.json")["f1"].interval.mean == 0.0
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DatasetError, match="holds no report"):
        Report.load(tmp_path / "b.json")


def test_undefined_values_do_not_count() -> None:
    some = Report(name="some", cases=("a", "b", "c"), values={"f1": [1.0, None, 0.0], "none": [None, None, None]})
    interval = some.interval("f1")
    assert interval is not None
    assert interval.mean == 0.5
    assert some.interval("none") is None
    assert "not defined for any case" in str(some)
    with pytest.raises(DatasetError, match="'a' occurs twice"):
        Report(name="twice", cases=("a", "a"), values={})
    with pytest.raises(DatasetError, match="2 values for 1 cases"):
        Report(name="long", cases=("a",), values={"f1": [0.0, 1.0]})


def test_resamples_that_are_drawn_in_parts_are_those_drawn_at_once() -> None:
    values = np.random.default_rng(1).normal(size=5000)  # so many that three resamples are drawn at a time
    means = values[np.random.default_rng(4).integers(0, 5000, (100, 5000))].mean(1)
    interval = bootstrap(values.tolist(), np.random.default_rng(4), num_resamples=100)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_interval_of_a_statistic_is_that_of_its_mean() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    interval = bootstrap_of(lambda rows: float(values[rows].mean()), 400, np.random.default_rng(2))
    half = 1.96 * values.std() / 20  # the normal interval of a mean of 400
    assert interval.low == pytest.approx(values.mean() - half, abs=0.004)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.004)
    with pytest.raises(ValueError, match="not defined"):
        bootstrap_of(lambda rows: float("nan"), 3, np.random.default_rng(2))


def test_the_page_stands_alone_and_shows_every_number(tmp_path: Path) -> None:
    shown = replace(report(BEFORE), curves={"risk": ("coverage", "wrong", [0.5, 1.0], [0.1, 0.2])}, settings={"model": "<none>"})
    write_html(shown, tmp_path / "report.html", shown.compare(report(BEFORE - 0.2)))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>demo &lt;b&gt;</h1>" in page
    assert "<b>" not in page
    assert page.count("<svg") == 2
    assert f"{BEFORE.mean():.3f}" in page
    assert 'class="better"' in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
