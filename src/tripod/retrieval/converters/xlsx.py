"""XLSX, read by openpyxl: a section is a sheet, and `Document.lines` counts its rows."""

from __future__ import annotations

import datetime
import io
import warnings

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import Composed
from tripod.retrieval.converters.optional import reader, reading


class Xlsx:
    """The values of all cells, a row a line; formulas are read as what they came to when the file was saved."""

    suffixes = frozenset({".xlsx", ".xlsm"})

    def convert(self, content: bytes, source: str) -> Document:
        openpyxl = reader("openpyxl", "openpyxl", "reading an XLSX")
        with reading("an XLSX"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of extensions that openpyxl does not know: they hold no values
            file = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
            composed = Composed()
            has_values = False
            for sheet in file.worksheets:
                composed.heading(1, sheet.title)
                composed.add(sheet.title)
                for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                    cells = [_written(cell) for cell in row]
                    while cells and not cells[-1]:
                        cells.pop()
                    if cells:
                        has_values = True
                        composed.line(number)
                        composed.add(" | ".join(cells))
                composed.add("")
            title = file.properties.title or ""
            file.close()
        if not has_values:
            raise ConversionError("none of its sheets holds a value")
        return composed.document(source, title=title, metadata={"format": "xlsx"})


def _written(value: object) -> str:
    """A value as a person writes it."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    return " ".join(str(value).split())
