from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tripod.errors import ConfigError
from tripod.evaluation.table import Table

ROWS = [
    {"model": "a", "step": 1, "value": 0.1},
    {"model": "b, or c", "step": None, "value": 1 / 3},
    {"model": "a", "step": 2, "extra": True},
]
BREAKS = "one\u2028two\x85three"  # what some readers take for ends of lines


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    table = Table.of(ROWS)
    table.write(tmp_path / f"table{suffix}")
    assert Table.read(tmp_path / f"table{suffix}") == table


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_cell_may_hold_any_character(tmp_path: Path, suffix: str) -> None:
    table = Table.of([{"text": BREAKS, "value": 1}])
    table.write(tmp_path / f"table{suffix}")
    assert Table.read(tmp_path / f"table{suffix}") == table


def test_csv_prints_a_number_of_numpy_as_a_number() -> None:
    assert Table.of([{"value": np.float64(0.1)}]).to_csv() == "value\n0.1\n"


def test_csv_prints_every_digit_and_quotes_what_needs_it(tmp_path: Path) -> None:
    Table.of(ROWS).write(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == ('model,step,value,extra\na,1,0.1,\n"b, or c",,0.3333333333333333,\na,2,,True\n')


def test_rows_are_chosen_and_grouped_by_their_cells() -> None:
    table = Table.of(ROWS)
    assert table.where(model="a").column("step") == [1, 2]
    assert table.where(lambda row: row["value"] is not None, model="a").column("step") == [1]
    assert {key: len(group) for key, group in table.by("model").items()} == {("a",): 2, ("b, or c",): 1}
    assert table.sorted_by("step").column("step") == [None, 1, 2]


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no column 'size'; it has model, step, value, extra"):
        Table.of(ROWS).column("size")
    for ask in (lambda table: table.where(size=1), lambda table: table.by("model", "size")):  # which would find nothing, and say nothing
        with pytest.raises(ConfigError, match="no column 'size'"):
            ask(Table.of(ROWS))
    assert len(Table.of([]).where(size=1)) == 0
    with pytest.raises(ConfigError, match="holds None, which is no number"):
        Table.of(ROWS).numbers("step")
