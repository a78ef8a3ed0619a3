"""The process that reads one PDF: the file on stdin, `{"pages": [...]}` or `{"error": "..."}` on stdout.

Run as `python -m tripod.retrieval.converters.pdf_worker MEMORY_BYTES`.
"""

from __future__ import annotations

import io
import json
import logging
import sys


def read_pages(content: bytes) -> dict[str, object]:
    """The text of every page, or the reason why there is none."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": "it is encrypted; save it without its password"}
        pages = [page.extract_text() for page in reader.pages]
        # Half of a surrogate pair is no character, and cannot be stored.
        return {"pages": [page.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "") for page in pages]}
    except DependencyError as error:
        return {"error": f"it is encrypted in a way that needs another package: {error}"}
    except MemoryError:
        return {"error": "reading it needs too much memory"}
    except Exception as error:  # pypdf raises whatever a malformed file leads it into
        return {"error": f"it is not a readable PDF: {type(error).__name__}: {error}"}


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
