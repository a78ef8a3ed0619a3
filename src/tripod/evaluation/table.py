"""Tidy tables: one measured value a row, what it was measured on beside it. Plain rows, written as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tripod.durable_files import atomic_file
from tripod.errors import ConfigError, MissingExtraError

Cell: TypeAlias = str | int | float | bool | None
Row: TypeAlias = Mapping[str, Cell]
SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that have the same columns; a cell that a row was made without is None.

    ```python
    table = Table.of([{"model": "a", "step": 1, "value": 0.5}, {"model": "b", "step": 1, "value": 0.25}])
    table.where(model="a").column("value")      # [0.5]
    ```
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @staticmethod
    def of(rows: Iterable[Row]) -> Table:
        """Columns in the order in which the rows name them first."""
        kept = tuple(rows)
        columns = tuple(dict.fromkeys(name for row in kept for name in row))
        return Table(columns, tuple({name: row.get(name) for name in columns} for row in kept))

    @staticmethod
    def joined(tables: Iterable[Table]) -> Table:
        """The rows of several tables, one after the other."""
        return Table.of(row for table in tables for row in table.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def column(self, name: str) -> list[Cell]:
        """Raises:
        ConfigError: there is no such column.
        """
        self._check((name,))
        return [row[name] for row in self.rows]

    def numbers(self, name: str) -> list[float]:
        """A column of numbers.

        Raises:
            ConfigError: there is no such column, or a cell of it is no number.
        """
        cells = self.column(name)
        wrong = [cell for cell in cells if isinstance(cell, str | None)]
        if wrong:
            raise ConfigError(f"the column {name!r} holds {wrong[0]!r}, which is no number")
        return [float(cell) for cell in cells if cell is not None]

    def where(self, test: Callable[[Row], bool] | None = None, /, **equal: Cell) -> Table:
        """The rows whose cells equal these, and that pass the test.

        Raises:
            ConfigError: there is no such column.
        """
        self._check(equal)
        kept = (row for row in self.rows if all(row[name] == cell for name, cell in equal.items()) and (test is None or test(row)))
        return Table(self.columns, tuple(kept))

    def among(self, name: str, cells: Iterable[Cell]) -> Table:
        """The rows whose cell is one of these."""
        self._check((name,))
        wanted = set(cells)
        return self.where(lambda row: row[name] in wanted)

    def by(self, *names: str) -> dict[tuple[Cell, ...], Table]:
        """The rows in groups of equal cells, in the order of their first rows."""
        self._check(names)
        groups: dict[tuple[Cell, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
        return {key: Table(self.columns, tuple(rows)) for key, rows in groups.items()}

    def sorted_by(self, *names: str) -> Table:
        """None comes first."""
        self._check(names)
        return Table(self.columns, tuple(sorted(self.rows, key=lambda row: [(row[name] is not None, row[name]) for name in names])))

    def to_csv(self) -> str:
        """Numbers as Python prints them, so that reading gives the same bits; None is an empty field."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(
            [repr(float(cell)) if isinstance(cell := row[name], float) else cell for name in self.columns] for row in self.rows
        )
        return stream.getvalue()

    def write(self, path: Path) -> None:
        """Write .csv, .parquet or .jsonl, as the name says; a file there is replaced.

        Raises:
            ConfigError: another ending.
            MissingExtraError: Parquet was asked for and pyarrow is not installed.
        """
        if path.suffix == ".csv":
            content = self.to_csv().encode()
        elif path.suffix == ".jsonl":
            content = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in self.rows).encode()
        elif path.suffix == ".parquet":
            content = _parquet(self)
        else:
            raise ConfigError(f"{path} ends in {path.suffix!r}; a table is written as one of {', '.join(SUFFIXES)}")
        with atomic_file(path) as stream:
            stream.write(content)

    @staticmethod
    def read(path: Path) -> Table:
        """Read what `write` wrote. CSV does not keep types: what looks like a number is one, and an empty field is None.

        Raises:
            ConfigError: another ending, or the file cannot be read.
        """
        try:
            if path.suffix == ".jsonl":
                return Table.of(json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
            if path.suffix == ".parquet":
                return Table.of(_pyarrow_parquet().read_table(path).to_pylist())
            if path.suffix == ".csv":
                with path.open(encoding="utf-8", newline="") as stream:
                    return Table.of({name: _cell(text) for name, text in row.items()} for row in csv.DictReader(stream))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a table: {error}") from error
        raise ConfigError(f"{path} ends in {path.suffix!r}; a table is read from one of {', '.join(SUFFIXES)}")

    def _check(self, names: Iterable[str]) -> None:
        if self.rows and (unknown := [name for name in names if name not in self.columns]):
            raise ConfigError(f"the table has no column {unknown[0]!r}; it has {', '.join(self.columns)}")


def _cell(text: str) -> Cell:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parquet(table: Table) -> bytes:
    parquet = _pyarrow_parquet()
    import pyarrow

    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({name: [row[name] for row in table.rows] for name in table.columns}), stream)
    return stream.getvalue()


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "a Parquet table") from None
    return parquet
