"""RTF, read by striprtf."""

from __future__ import annotations

from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.composed import Composed
from tripod.retrieval.converters.optional import reader, reading


class Rtf:
    """The text without its dress. `Document.lines` counts the paragraphs."""

    suffixes = frozenset({".rtf"})

    def convert(self, content: bytes, source: str) -> Document:
        striprtf = reader("striprtf.striprtf", "striprtf", "reading an RTF")
        if not content.lstrip().startswith(b"{\\rtf"):
            raise ConversionError("it does not begin like an RTF file")
        with reading("an RTF"):
            text: str = striprtf.rtf_to_text(content.decode("latin-1"), errors="replace")
        composed = Composed()
        for number, paragraph in enumerate(text.split("\n"), start=1):
            if paragraph.strip():
                composed.line(number)
                composed.add(paragraph, end="\n\n")
        if not composed.length:
            raise ConversionError("it holds no text")
        return composed.document(source, metadata={"format": "rtf"})
