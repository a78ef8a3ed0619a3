"""PDF, read by pypdf in a process of its own, because a hostile file can make any reader loop or eat memory.

The document's text is the extracted text; `Document.pages` says which page a character came from.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from tripod.documents import Document, Page
from tripod.errors import ConversionError, MissingExtraError

_BETWEEN_PAGES = "\n\n"


@dataclass(frozen=True, slots=True)
class Pdf:
    """Pages are kept; the metadata names those that are broken, as `unreadable_pages`.

    A file that takes too long or too much memory is an error of that file alone.
    """

    timeout_s: float = 60.0
    memory_bytes: int = 2 << 30  # address space of the reading process, where the system can limit it

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset({".pdf"})

    def convert(self, content: bytes, source: str) -> Document:
        if find_spec("pypdf") is None:
            raise MissingExtraError("pypdf", "retrieval", "reading a PDF")
        found = self._read(content)
        unreadable = ", ".join(str(number) for number, page in enumerate(found, start=1) if page is None)
        pages = [page or "" for page in found]
        if not any(page.strip() for page in pages):
            broken = f" (broken: {unreadable})" if unreadable else ""
            raise ConversionError(f"none of its {len(pages)} pages holds text{broken}; a scan must go through OCR first")
        spans: list[Page] = []
        start = 0
        for number, page in enumerate(pages, start=1):
            spans.append(Page(number, start, start + len(page)))
            start += len(page) + len(_BETWEEN_PAGES)
        metadata = {"format": "pdf"} | ({"unreadable_pages": unreadable} if unreadable else {})
        return Document(source=source, text=_BETWEEN_PAGES.join(pages), pages=tuple(spans), metadata=metadata)

    def _read(self, content: bytes) -> list[str | None]:
        # -P: no module is taken from the current folder, which may be the one with the documents.
        command = [sys.executable, "-P", "-m", "tripod.retrieval.converters.pdf_worker", str(self.memory_bytes)]
        try:
            worker = subprocess.run(command, input=content, capture_output=True, timeout=self.timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise ConversionError(f"reading it took more than {self.timeout_s:g} s, so it was given up") from None
        if worker.returncode != 0:
            raise ConversionError(f"the PDF reader died on it (exit code {worker.returncode}), probably out of memory")
        answer = json.loads(worker.stdout)
        if "error" in answer:
            raise ConversionError(answer["error"])
        return list(answer["pages"])
