"""Plain text: the file is the document."""

from __future__ import annotations

from tripod.documents import Document
from tripod.retrieval.converters.encoding import decode


class PlainText:
    """Text without structure. Offsets point into the decoded file."""

    suffixes = frozenset({".txt", ".text"})

    def convert(self, content: bytes, source: str) -> Document:
        text, encoding = decode(content)
        return Document(source=source, text=text, metadata={"format": "text", "encoding": encoding})
