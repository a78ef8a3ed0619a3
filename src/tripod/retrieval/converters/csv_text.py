"""CSV and TSV: the file is the document; the names of the columns are the title of its section."""

from __future__ import annotations

import csv
import io
from itertools import islice

from tripod.documents import Document, Section
from tripod.errors import ConversionError
from tripod.retrieval.converters.encoding import decode

_MAX_TITLE = 200  # characters
_LOOKED_AT = 10  # rows, to find the delimiter
_NUMBER = frozenset("0123456789+-.,%eE ")


class Csv:
    """Offsets point into the decoded file. A first row without numbers names the columns, and every passage carries those names."""

    suffixes = frozenset({".csv", ".tsv"})

    def convert(self, content: bytes, source: str) -> Document:
        text, encoding = decode(content)
        names = _column_names(text, "\t" if source.lower().endswith(".tsv") else "")
        return Document(
            source=source,
            text=text,
            sections=(Section(0, len(text), ", ".join(names)[:_MAX_TITLE]),) if names else (),
            metadata={"format": "csv", "encoding": encoding},
        )


def _column_names(text: str, delimiter: str) -> list[str]:
    """The cells of the first row, if they look like names; empty otherwise."""
    try:
        tables = [_first_rows(text, candidate) for candidate in (delimiter or ",;\t|")]
    except csv.Error as error:
        raise ConversionError(f"it is not a table of values: {error}") from None
    table = max(tables, key=lambda rows: min(map(len, rows), default=0))  # the delimiter that cuts every row
    names = [" ".join(cell.split()) for cell in table[0]] if table else []
    is_header = len(names) > 1 and all(name and not _NUMBER.issuperset(name) for name in names)
    return names if is_header else []


def _first_rows(text: str, delimiter: str) -> list[list[str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return list(islice((row for row in rows if row), _LOOKED_AT))
