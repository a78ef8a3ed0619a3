"""Replication cards: each published table that the released files can give, computed anew from them and compared digit by digit.

A card is a page `docs/replications/NAME.md`: every cell as it was printed and as it comes out, with a mark: equal, differs (by how much),
or not checkable (why). The printed numbers lie in `printed/*.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tripod.analysis.study import new_figure
from tripod.durable_files import atomic_file
from tripod.errors import ConfigError
from tripod.evaluation.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Computed = float | str  # a number to round as the printed one is, or text
Values = Mapping[tuple[str, str], Computed]  # by row and column


@dataclass(frozen=True, slots=True)
class Cell:
    """One printed number beside the one that comes out."""

    row: str
    column: str
    printed: str
    found: str | None  # None: not checkable
    difference: float | None  # found - printed, of numbers that can be compared

    @property
    def mark(self) -> str:
        if self.found is None:
            return "not checkable"
        return "equal" if self.found == self.printed else "differs"


@dataclass(frozen=True, slots=True)
class Part:
    """One printed table."""

    title: str
    printed: str  # the CSV in `printed/`
    compute: Callable[[Path], Values]
    uncheckable: str = ""  # why some cells do not come out


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of what was published, from a table that is kept beside it: the documentation's build draws it again from there."""

    caption: str
    table: Callable[[Path], Table]  # from the published files
    draw: Callable[[Table, Figure], None]


@dataclass(frozen=True, slots=True)
class Findings:
    """A table that comes out of the published files, where the publication has a picture and no numbers to compare it with."""

    title: str
    compute: Callable[[Path], Table]  # cells as they are to be read
    caption: str  # what the columns say


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    title: str
    source: str  # which publication, and the files it is computed from
    parts: tuple[Part, ...]
    plot: Plot | None = None
    remarks: tuple[str, ...] = ()  # what else of the publication cannot be checked, and why
    findings: Findings | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    card: Card
    cells: tuple[tuple[Cell, ...], ...]  # of each part
    found: Table | None = None  # of the card's findings

    def count(self, mark: str) -> int:
        return sum(cell.mark == mark for part in self.cells for cell in part)

    def table(self) -> Table:
        rows: list[Row] = [
            {
                "card": self.card.name,
                "table": part.title,
                "row": cell.row,
                "column": cell.column,
                "printed": cell.printed,
                "found": cell.found,
                "mark": cell.mark,
                "difference": cell.difference,
            }
            for part, cells in zip(self.card.parts, self.cells, strict=True)
            for cell in cells
        ]
        return Table.of(rows)

    def page(self) -> str:
        """The card as Markdown."""
        card = self.card
        lines = [f"# {card.title}", "", card.source, ""]
        counted = ", ".join(f"{self.count(mark)} {mark}" for mark in ("equal", "differs", "not checkable") if self.count(mark))
        if counted:
            lines += [f"**{counted}** of {sum(map(len, self.cells))} printed numbers.", ""]
        lines += ["```bash", f"tripod study published {card.name} --data ../shared/data --out docs/replications", "```", ""]
        if card.plot is not None:
            lines += [f"![{card.plot.caption}]({card.name}.png)", "", card.plot.caption, ""]
        if card.findings is not None and self.found is not None:
            columns = list(self.found.columns)
            lines += [f"## {card.findings.title}", "", f"| {' | '.join(columns)} |", f"|---|---|{'---:|' * (len(columns) - 2)}"]
            lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in self.found]
            lines += ["", card.findings.caption, ""]
        for part, cells in zip(card.parts, self.cells, strict=True):
            columns = list(dict.fromkeys(cell.column for cell in cells))
            lines += [f"## {part.title}", "", f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
            for row in dict.fromkeys(cell.row for cell in cells):
                of_row = {cell.column: cell for cell in cells if cell.row == row}
                lines.append(f"| {row} | {' | '.join(_shown(of_row.get(column)) for column in columns)} |")
            lines.append("")
            if part.uncheckable and any(cell.found is None for cell in cells):
                lines += [f"Not checkable (?): {part.uncheckable}", ""]
        if counted:
            lines += ["A number is as it comes out; ≠ stands before one that differs, with the printed one behind it.", ""]
        if card.remarks:
            lines += ["## What this card does not say", "", *(f"- {remark}" for remark in card.remarks), ""]
        return "\n".join(lines)


def replicate(card: Card, data: Path) -> Outcome:
    """Compute a card from the published files.

    Args:
        card: see `tripod.analysis.replication_cards`.
        data: the folder that holds `pythia-evals`, `pythia-term-frequency` and `olmoe-routing`.

    Raises:
        ConfigError: a file is not there.
    """
    return Outcome(
        card,
        tuple(_cells(part, data) for part in card.parts),
        None if card.findings is None else _from_files(card.findings.compute, data),
    )


def write_card(outcome: Outcome, folder: Path, data: Path) -> None:
    """Write a card's page, its numbers as CSV, and its picture with the table that it is drawn from.

    Raises:
        MissingExtraError: the card has a picture and matplotlib is not installed.
    """
    card = outcome.card
    with atomic_file(folder / f"{card.name}.md") as stream:
        stream.write(outcome.page().encode())
    if card.parts:
        outcome.table().write(folder / f"{card.name}.csv")
    if card.plot is not None:
        card.plot.table(data).write(folder / f"{card.name}.plot.csv")
        draw_card(card, folder)


def draw_card(card: Card, folder: Path) -> None:
    """Draw a card's picture from the table beside it."""
    assert card.plot is not None
    figure = new_figure()
    card.plot.draw(Table.read(folder / f"{card.name}.plot.csv"), figure)
    figure.savefig(folder / f"{card.name}.png", dpi=110)


def _from_files(compute: Callable[[Path], T], data: Path) -> T:
    try:
        return compute(data)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} is not there; give the folder with the published files (--data FOLDER)") from error


def _cells(part: Part, data: Path) -> tuple[Cell, ...]:
    values = _from_files(part.compute, data)
    text = resources.files("tripod.analysis").joinpath("printed", part.printed).read_text(encoding="utf-8")
    return tuple(_cell(line, values.get((line["row"], line["column"]))) for line in csv.DictReader(text.splitlines()))


def _cell(line: Mapping[str, str], value: Computed | None) -> Cell:
    printed = line["printed"]
    if value is None or isinstance(value, str):
        return Cell(line["row"], line["column"], printed, value, None)
    num_digits = len(printed.partition(".")[2])
    found = f"{value:.{num_digits}f}"
    if printed.startswith("."):
        found = found.removeprefix("0")
    return Cell(line["row"], line["column"], printed, found, value - float(printed))


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.found is None:
        return f"{cell.printed} (?)"
    return cell.found if cell.mark == "equal" else f"≠ {cell.found} ({cell.printed})"
