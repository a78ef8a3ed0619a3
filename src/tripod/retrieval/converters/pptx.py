"""PPTX, read by python-pptx. A page is a slide."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import Composed
from tripod.retrieval.converters.optional import reader, reading


class Pptx:
    """Titles, text, tables, charts, the descriptions of pictures, and the speaker's notes of each slide, from top to bottom."""

    suffixes = frozenset({".pptx"})

    def convert(self, content: bytes, source: str) -> Document:
        pptx = reader("pptx", "python-pptx", "reading a PPTX")
        with reading("a PPTX"):
            file = pptx.Presentation(io.BytesIO(content))
            composed = Composed()
            for number, slide in enumerate(file.slides, start=1):
                start = composed.length
                title = slide.shapes.title
                heading = title.text_frame.text.strip() if title is not None and title.has_text_frame else ""
                composed.heading(1, heading or f"Slide {number}")
                for text in _texts(slide.shapes):
                    composed.add(text)
                if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None and notes.text.strip():
                    composed.add(f"Notes: {notes.text.strip()}")
                composed.page(number, start)
                composed.add("")
            document = composed.document(source, title=file.core_properties.title or "", metadata={"format": "pptx"})
        if not document.text.strip():
            raise ConversionError("none of its slides holds text; pictures of text must go through OCR first")
        return document


def _texts(shapes: Iterable[Any]) -> Iterator[str]:
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if hasattr(shape, "shapes"):  # a group
            yield from _texts(shape.shapes)
            continue
        description = shape._element.xpath(".//p:cNvPr/@descr")
        if getattr(shape, "has_table", False):
            for row in shape.table.rows:
                yield " | ".join(" ".join(cell.text.split()) for cell in row.cells)
        elif getattr(shape, "has_chart", False):
            yield from _chart(shape.chart)
        elif getattr(shape, "has_text_frame", False) and shape.text_frame.text.strip():
            yield shape.text_frame.text.replace("\v", "\n")
        elif description and description[0].strip():
            yield f"[{' '.join(description[0].split())}]"


def _chart(chart: Any) -> Iterator[str]:
    """A chart as the table that it draws."""
    if chart.has_title and chart.chart_title.has_text_frame:
        yield chart.chart_title.text_frame.text
    for plot in chart.plots:
        series = list(plot.series)
        yield " | ".join(["Category", *(str(line.name) for line in series)])
        values = [list(line.values) for line in series]
        for i, category in enumerate(plot.categories):
            yield " | ".join([str(category), *("" if i >= len(line) or line[i] is None else f"{line[i]:g}" for line in values)])
