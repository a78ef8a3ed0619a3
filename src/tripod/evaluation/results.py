"""A store of evaluation results: lm-eval's files, old and new, Pythia's published ones, and ours, as one tidy table.

A row is one metric of one task at one checkpoint; see COLUMNS. `tripod eval results FOLDER...` prints or writes it.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tripod.errors import ConfigError
from tripod.evaluation.result_names import BATCH_TOKENS, Evaluated, evaluated
from tripod.evaluation.table import Cell, Row, Table

COLUMNS = (
    *("suite", "model", "size", "deduped", "run", "variant", "shots", "step", "tokens"),
    *("task", "prompt", "metric", "filter", "value", "stderr", "source"),
)
_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
_TIME = re.compile(r"(\d{2})-(\d{2})-(\d{4})-(\d{2})-(\d{2})-(\d{2})|(\d{4}-\d{2}-\d{2}T[\d.:-]+)")
_OWN = ("model", "step", "task", "metric", "value")  # columns that a table of ours has
_HEADLINE = {"suite", "model", "variant", "shots", "path", "task", "metric", "value"}  # that Pythia's long table has


def read_results(paths: Iterable[Path], *, keep_repeated: bool = False) -> Table:
    """All results in files and folders.

    Args:
        paths: .json of lm-eval (any version); .jsonl(.gz) with such an object a line, under `json` with its `path`, or one row of ours a
            line; .csv of Pythia's headline tasks; .csv, .parquet and .jsonl of `tripod eval tasks`; folders of these.
        keep_repeated: keep results that were published twice; the newest counts otherwise.

    Raises:
        ConfigError: a file that is named cannot be read, or holds no results; or a folder has none. In folders, files without results
            are passed over.
    """
    rows: list[Row] = []
    paths = list(paths)
    for path in paths:
        if path.is_dir():
            for file in sorted(entry for entry in path.rglob("*") if entry.name.endswith(_SUFFIXES)):
                rows += _rows(file, file.relative_to(path.parent).as_posix(), is_named=False)
        else:
            rows += _rows(path, path.as_posix(), is_named=True)
    if not rows:
        raise ConfigError(f"{', '.join(map(str, paths))}: no file there holds results ({', '.join(_SUFFIXES)})")
    return Table(COLUMNS, tuple(rows if keep_repeated else _newest(rows)))


def results_of(content: Mapping[str, Any], source: str) -> list[Row]:
    """The rows of one object that lm-eval wrote.

    Args:
        content: with `results` as a table (0.0.1 to 0.4), as a list (the promptsource branch), or with `table_results` alone.
        source: the file's path.
    """
    config = content.get("config") or {}
    if not config and isinstance(content.get("model_args"), Mapping):
        config = {"model_args": content["model_args"]}
    what = evaluated(source, config)
    results = content.get("results")
    if isinstance(results, Mapping):
        shots = content.get("n-shot") or {}
        return [row for task, values in results.items() for row in _task_rows(_with_shots(what, shots.get(task)), task, values, source)]
    listed = results if isinstance(results, list) else list((content.get("table_results") or {}).values())
    return [row for one in listed for row in _prompt_rows(what, one, source)]


def _task_rows(what: Evaluated | Row, task: str, values: object, source: str) -> Iterator[Row]:
    if not isinstance(values, Mapping):
        return
    names_filters = any("," in key for key in values)  # since 0.4; what has no filter then, such as sample_len, is about the task
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, int | float) or (names_filters and not comma):
            continue
        error = values.get(f"{metric}_stderr,{filtered}" if filtered else f"{metric}_stderr")
        yield _row(what, source, task=task, metric=metric, filter=filtered or None, value=float(value), stderr=_number(error))


def _prompt_rows(what: Evaluated | Row, one: Mapping[str, Any], source: str) -> Iterator[Row]:
    for metric, value in one.items():
        error = one.get(f"{metric}_stderr")
        if error is None or isinstance(value, str | bool | None):
            continue
        yield _row(what, source, task=one["task_name"], prompt=one["prompt_name"], metric=metric, value=float(value), stderr=_number(error))


def _row(what: Evaluated | Row, source: str, **cells: Cell) -> Row:
    about = what if isinstance(what, Mapping) else {name: getattr(what, name) for name in what.__slots__}
    return {name: cells.get(name, about.get(name)) if name != "source" else source for name in COLUMNS}


def _with_shots(what: Evaluated, shots: object) -> Row:
    about: dict[str, Cell] = {name: getattr(what, name) for name in what.__slots__}
    return {**about, "shots": int(shots)} if isinstance(shots, int) else about


def _number(value: object) -> float | None:
    """lm-eval writes "N/A" where it computes none."""
    return float(value) if isinstance(value, int | float) else None


def _rows(file: Path, source: str, *, is_named: bool) -> list[Row]:
    try:
        rows = list(_read(file, source))
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there; give files and folders that hold results") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read as results: {type(error).__name__}: {error}; leave it out") from error
    if is_named and not rows:
        raise ConfigError(f"{file} holds no results; expected what lm-eval or `tripod eval tasks` wrote ({', '.join(_SUFFIXES)})")
    return rows


def _read(file: Path, source: str) -> Iterator[Row]:
    if file.name.endswith(".csv"):
        with file.open(encoding="utf-8", newline="") as stream:
            lines = csv.DictReader(stream)
            columns = set(lines.fieldnames or ())
            if columns >= _HEADLINE:
                yield from map(_headline, lines)
            elif columns >= set(_OWN):
                yield from _own(Table.read(file), source)
    elif file.suffix == ".parquet":
        yield from _own(Table.read(file), source)
    elif file.name.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            for line in stream:
                one = json.loads(line)
                if isinstance(one.get("json"), Mapping):
                    yield from results_of(one["json"], one["path"])
                else:
                    yield from _own([one], source)
    else:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, Mapping) and ("results" in content or "table_results" in content):
            yield from results_of(content, source)


def _own(rows: Iterable[Row], source: str) -> Iterator[Row]:
    for row in rows:
        if all(name in row for name in _OWN):
            about: Row = {name: row.get(name) for name in COLUMNS}
            size = None if about["size"] is None else str(about["size"])  # parameters, where Pythia's is a name: one column has one type
            yield {**about, "size": size, "run": row.get("run") or "base", "source": source}


def _headline(line: Mapping[str, str]) -> Row:
    """Pythia's headline tasks in long form."""
    what = evaluated(f"{line['suite']}/{line['model']}/{line['variant'] or '.'}/{line['path']}", {"num_fewshot": line["shots"]})
    return _row(what, line["path"], task=line["task"], metric=line["metric"], value=float(line["value"]))


def _newest(rows: Iterable[Row]) -> list[Row]:
    """Of rows that say the same of the same, the one of the newest file, or the last read where no time is known."""
    kept: dict[tuple[Cell, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in COLUMNS if name not in ("value", "stderr", "source"))
        before = kept.get(key)
        if before is None or _time(row) >= _time(before):
            kept[key] = row
    return list(kept.values())


def _time(row: Row) -> tuple[bool, str]:
    """When it was evaluated, so that the latest is the largest; a row with a standard error says more than one without."""
    match = _TIME.search(str(row["source"]))
    if match is None:
        time = ""
    elif match[7]:
        time = match[7]
    else:
        month, day, year, *clock = match.groups()[:6]
        time = f"{year}-{month}-{day}T{'-'.join(clock)}"
    return row["stderr"] is not None, time


__all__ = ["BATCH_TOKENS", "COLUMNS", "read_results", "results_of"]
