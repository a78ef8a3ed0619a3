"""PDF, read by pypdf. The document's text is the extracted text; `Document.pages` says which page a character came from."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any

from tripod.documents import Document, Page
from tripod.errors import ConversionError
from tripod.retrieval.converters.optional import reader, reading
from tripod.retrieval.converters.running_lines import without_running_lines

_BETWEEN_PAGES = "\n\n"
_MAX_UNKNOWN = 0.1  # the share of replacement marks above which a page counts as unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Pdf:
    """Pages are kept; running headers and footers are kept once. The metadata names both: `unreadable_pages` and `running_lines`."""

    has_layout: bool = False  # True keeps the columns of tables apart by spaces, as they stand on the page; slower

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset({".pdf"})

    def convert(self, content: bytes, source: str) -> Document:
        found = self._pages(content)
        unreadable = ", ".join(str(number) for number, page in enumerate(found, start=1) if page is None)
        pages, running = without_running_lines([page or "" for page in found])
        if not any(page.strip() for page in pages):
            broken = f" (broken: {unreadable})" if unreadable else ""
            raise ConversionError(f"none of its {len(pages)} pages holds text{broken}; a scan must go through OCR first")
        spans: list[Page] = []
        start = 0
        for number, page in enumerate(pages, start=1):
            spans.append(Page(number, start, start + len(page)))
            start += len(page) + len(_BETWEEN_PAGES)
        metadata = {"format": "pdf"}
        if unreadable:
            metadata["unreadable_pages"] = unreadable
        if running:
            metadata["running_lines"] = " | ".join(running)
        return Document(source=source, text=_BETWEEN_PAGES.join(pages), pages=tuple(spans), metadata=metadata)

    def _pages(self, content: bytes) -> list[str | None]:
        """The text of every page; None for one that is broken."""
        pypdf = reader("pypdf", "pypdf", "reading a PDF", extra="retrieval")
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)
        try:
            with reading("a PDF"):
                file = pypdf.PdfReader(io.BytesIO(content))
                if file.is_encrypted and not file.decrypt(""):
                    raise ConversionError("it is encrypted; save it without its password")
                return [self._page(page) for page in file.pages]
        except ConversionError as error:
            if "DependencyError" in str(error):
                raise ConversionError("it is encrypted in a way that pypdf reads only beside the package 'cryptography'") from None
            raise

    def _page(self, page: Any) -> str | None:
        """The text of a page; None if just this one cannot be read."""
        try:
            text: str = page.extract_text(extraction_mode="layout") if self.has_layout else page.extract_text()
        except MemoryError:
            raise
        except Exception:  # pypdf raises whatever a malformed file leads it into
            return None
        # Half of a surrogate pair is no character, and cannot be stored.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
        # A font without a map to characters: what pypdf makes of it is not the page's text.
        return None if text.count("\ufffd") > len(text) * _MAX_UNKNOWN else text
