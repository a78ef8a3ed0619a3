"""One value a case and metric: means with intervals, kept as JSON, and compared with a baseline case by case."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tripod.errors import DatasetError
from tripod.evaluation.intervals import Interval, bootstrap

SEED = 20260101  # of the resamples: the same values always give the same interval
_COLUMN = 25  # characters: the longest name of a metric
_FORMAT = "tripod-report-1"
_FEWEST_CASES = 6  # that can show a difference: five that differ one way do so by chance once in sixteen times


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an evaluation found.

    Args:
        name: what was evaluated.
        cases: their ids, each once.
        values: for each metric one value a case, in their order; None where it is not defined for the case.
        lower_is_better: the metrics of which a smaller value is better, such as seconds.
        statistics: what is no mean over cases, such as an area under a curve.
        curves: for plots, by name: the names of both axes, and their values.
        settings: under what it was found.

    Raises:
        DatasetError: an id occurs twice, or a metric has another number of values than there are cases.
    """

    name: str
    cases: tuple[str, ...]
    values: Mapping[str, Sequence[float | None]] = field(hash=False)
    lower_is_better: frozenset[str] = frozenset()
    statistics: Mapping[str, Interval] = field(default_factory=dict, hash=False)
    curves: Mapping[str, tuple[str, str, Sequence[float], Sequence[float]]] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(set(self.cases)) != len(self.cases):
            twice = next(case for case in self.cases if self.cases.count(case) > 1)
            raise DatasetError(f"the case {twice!r} occurs twice; give each an id of its own")
        for metric, values in self.values.items():
            if len(values) != len(self.cases):
                raise DatasetError(f"{metric} has {len(values)} values for {len(self.cases)} cases; give one each, None where undefined")

    def interval(self, metric: str) -> Interval | None:
        """The mean over the cases for which the metric is defined, with its 95 % bootstrap interval; None where it is for none."""
        known = [value for value in self.values[metric] if value is not None]
        return bootstrap(known, np.random.default_rng(SEED)) if known else None

    def compare(self, baseline: Report | str | Path) -> Comparison:
        """Differences from a baseline, paired by case. Usable as a test: `assert report.compare("baseline.json")["f1"].is_not_worse`.

        Raises:
            DatasetError: the baseline's file is no report, or the two have no case in common.
        """
        before = baseline if isinstance(baseline, Report) else Report.load(Path(baseline))
        places = {case: place for place, case in enumerate(before.cases)}
        shared = [(here, places[case]) for here, case in enumerate(self.cases) if case in places]
        if not shared:
            raise DatasetError(f"{self.name} and its baseline {before.name} have no case in common, so nothing can be compared")
        differences = {}
        for metric in self.values:
            if metric in before.values:
                pairs = [(self.values[metric][here], before.values[metric][there]) for here, there in shared]
                known = [now - then for now, then in pairs if now is not None and then is not None]
                if known:
                    interval = bootstrap(known, np.random.default_rng(SEED))
                    differences[metric] = Difference(interval, len(known), metric in self.lower_is_better)
        return Comparison(differences, len(self.cases) - len(shared), len(before.cases) - len(shared))

    def save(self, path: Path) -> None:
        """Write it as JSON, which `load` and `compare` read."""
        content = {
            "format": _FORMAT,
            "name": self.name,
            "settings": dict(self.settings),
            "intervals": {metric: _plain(self.interval(metric)) for metric in self.values},
            "statistics": {name: _plain(interval) for name, interval in self.statistics.items()},
            "lower_is_better": sorted(self.lower_is_better),
            "curves": {name: [x, y, list(xs), list(ys)] for name, (x, y, xs, ys) in self.curves.items()},
            "cases": list(self.cases),
            "values": {metric: [_rounded(value) for value in values] for metric, values in self.values.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Report:
        """Read what `save` wrote.

        Raises:
            DatasetError: the file is none of these.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            return Report(
                name=content["name"],
                cases=tuple(content["cases"]),
                values=content["values"],
                lower_is_better=frozenset(content["lower_is_better"]),
                statistics={name: Interval(**interval) for name, interval in content["statistics"].items()},
                curves={name: (x, y, xs, ys) for name, (x, y, xs, ys) in content["curves"].items()},
                settings=content["settings"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path} holds no report: {error}; expected a file that `Report.save` wrote") from None

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.cases)} cases"]
        for metric, values in self.values.items():
            interval = self.interval(metric)
            num_known = sum(value is not None for value in values)
            shown = "not defined for any case" if interval is None else f"{interval}"
            lines.append(f"  {metric:<{_COLUMN}} {shown}" + (f"  ({num_known} cases)" if 0 < num_known < len(values) else ""))
        lines += [f"  {name:<{_COLUMN}} {interval}" for name, interval in self.statistics.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Difference:
    """Now minus then, the mean over cases with its 95 % bootstrap interval."""

    interval: Interval
    num_cases: int
    lower_is_better: bool = False

    @property
    def is_worse(self) -> bool:
        """Worse by more than chance: the whole interval lies on the wrong side of 0. Fewer than six cases show nothing."""
        return self.num_cases >= _FEWEST_CASES and (self.interval.low > 0.0 if self.lower_is_better else self.interval.high < 0.0)

    @property
    def is_better(self) -> bool:
        """Better by more than chance, of six cases at least."""
        return self.num_cases >= _FEWEST_CASES and (self.interval.high < 0.0 if self.lower_is_better else self.interval.low > 0.0)

    @property
    def is_not_worse(self) -> bool:
        """Nothing shows that it is worse; few cases show little, see `is_within`."""
        return not self.is_worse

    def is_within(self, margin: float) -> bool:
        """Whether it is shown to be worse by no more than `margin`: the whole interval lies above that. Asks for enough cases."""
        return self.interval.high <= margin if self.lower_is_better else self.interval.low >= -margin

    def __str__(self) -> str:
        word = "better" if self.is_better else "worse" if self.is_worse else "no difference shown"
        interval = self.interval
        return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] {word} ({self.num_cases} cases)"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences by metric, over the cases that both reports have."""

    differences: Mapping[str, Difference] = field(hash=False)
    num_new: int = 0  # cases that the baseline does not have
    num_gone: int = 0  # cases of the baseline that are not there any more

    def __getitem__(self, metric: str) -> Difference:
        if metric not in self.differences:
            raise DatasetError(f"{metric!r} is not in both reports; there are {', '.join(self.differences)}")
        return self.differences[metric]

    @property
    def worse(self) -> tuple[str, ...]:
        """The metrics that are worse by more than chance."""
        return tuple(metric for metric, difference in self.differences.items() if difference.is_worse)

    def __str__(self) -> str:
        lines = [f"  {metric:<{_COLUMN}} {difference}" for metric, difference in self.differences.items()]
        if self.num_new or self.num_gone:
            lines.append(f"  {self.num_new} cases are new and {self.num_gone} are gone; they are not compared")
        return "\n".join(lines)


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)
