"""The process that reads one PDF: the file on stdin, `{"pages": [...]}` or `{"error": "..."}` on stdout.

Run as `python -m tripod.retrieval.converters.pdf_worker MEMORY_BYTES`.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pypdf import PageObject


_MAX_UNKNOWN = 0.1  # the share of replacement marks above which a page counts as unreadable


def read_pages(content: bytes) -> dict[str, object]:
    """The text of every page (None for one that is broken), or the reason why there is none."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": "it is encrypted; save it without its password"}
        return {"pages": [_read_page(page) for page in reader.pages]}
    except DependencyError as error:
        return {"error": f"it is encrypted in a way that needs another package: {error}"}
    except MemoryError:
        return {"error": "reading it needs too much memory"}
    except Exception as error:  # pypdf raises whatever a malformed file leads it into
        return {"error": f"it is not a readable PDF: {type(error).__name__}: {error}"}


def _read_page(page: PageObject) -> str | None:
    """The text of a page; None if just this one cannot be read."""
    try:
        text = page.extract_text()
    except MemoryError:
        raise
    except Exception:  # as above
        return None
    # Half of a surrogate pair is no character, and cannot be stored.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
    # A font without a map to characters: what pypdf makes of it is not the page's text.
    return None if text.count("\ufffd") > len(text) * _MAX_UNKNOWN else text


def main() -> None:
    memory_bytes = int(sys.argv[1])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, OSError, ValueError):
        pass  # Windows has no such limit, and some systems refuse it; the time limit remains
    json.dump(read_pages(sys.stdin.buffer.read()), sys.stdout)


if __name__ == "__main__":
    main()
