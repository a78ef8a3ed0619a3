"""Jupyter notebooks: the cells in order. `Document.lines` counts the cells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import Composed
from tripod.retrieval.converters.encoding import decode
from tripod.retrieval.converters.markdown import headings
from tripod.retrieval.converters.optional import reading

_MAX_OUTPUT = 2000  # characters of what a cell printed: a log is not prose


class Notebook:
    """Prose, code, and what the code printed; the headings of the prose become the sections' titles."""

    suffixes = frozenset({".ipynb"})

    def convert(self, content: bytes, source: str) -> Document:
        text, encoding = decode(content)
        with reading("a notebook"):
            notebook = json.loads(text)
            cells: Any = notebook.get("cells") if isinstance(notebook, dict) else None
            if cells is None and isinstance(notebook, dict) and "worksheets" in notebook:  # of format 3 and before
                cells = [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
            if not isinstance(cells, list):
                raise ConversionError("it is not a notebook: it has no list of cells")
            composed = Composed()
            for number, cell in enumerate(cells, start=1):
                composed.line(number)
                body = _joined(cell.get("source", cell.get("input", "")))
                if cell.get("cell_type") == "markdown":
                    done = 0
                    for heading in headings(body, 0):
                        composed.add(body[done : heading.start], end="")
                        composed.heading(heading.level, heading.title)
                        done = heading.start
                    composed.add(body[done:], end="\n\n")
                elif body.strip():
                    composed.add(body, end="\n\n")
                for output in _outputs(cell):
                    composed.add(output, end="\n\n")
            language = notebook.get("metadata", {}).get("language_info", {}).get("name", "")
            title = notebook.get("metadata", {}).get("title", "")
        metadata = {"format": "notebook", "encoding": encoding} | ({"code": language} if language else {})
        return composed.document(source, title=title if isinstance(title, str) else "", metadata=metadata)


def _joined(lines: object) -> str:
    return "".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _outputs(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell.get("outputs", []):
        shown = output.get("text") or output.get("data", {}).get("text/plain") or ""
        if text := _joined(shown).strip("\n"):
            yield text if len(text) <= _MAX_OUTPUT else text[:_MAX_OUTPUT] + " [...]"
