"""The process that converts files which could hang or crash their reader: requests on stdin, answers as JSON on stdout.

Run as `python -m tripod.retrieval.converters.worker`, by `tripod.retrieval.converters.isolated`.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sys
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tripod.documents import Document
from tripod.errors import ConversionError, MissingExtraError
from tripod.protocols import Converter
from tripod.retrieval.converters.isolated import FRAME, Limits

_GRACE_S = 5  # the parent kills at the limit; this is for a worker whose parent is gone
_RETIRES_ABOVE_BYTES = 512 << 20  # memory that a reader took is seldom given back


def answer(converter: Converter, content: bytes, source: str) -> dict[str, Any]:
    """The document, or the reason why there is none; `is_last` says that this process should not be used again."""
    try:
        document = converter.convert(content, source)
    except ConversionError as error:
        return {"error": str(error)}
    except MissingExtraError as error:
        return {"missing": [error.package, error.extra, error.purpose]}
    except MemoryError:
        return {"error": "reading it needs too much memory", "is_last": True}
    except ImportError as error:  # of a library that found no room
        is_memory = "map segment" in str(error) or "allocate" in str(error)
        return {"error": "reading it needs too much memory" if is_memory else f"its reader is broken: {error}", "is_last": True}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # a library raises whatever a malformed file leads it into
        return {"error": f"reading it failed: {type(error).__name__}: {error}"}
    return {"document": _fields(document)}


def _fields(document: Document) -> dict[str, Any]:
    return {
        "text": document.text,
        "title": document.title,
        "sections": [astuple(span) for span in document.sections],
        "pages": [astuple(span) for span in document.pages],
        "lines": [astuple(span) for span in document.lines],
        "metadata": dict(document.metadata),
    }


def _limit(limits: Limits) -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit, and some systems refuse it; the time limit remains
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        memory_bytes = limits.memory_bytes if hard == resource.RLIM_INFINITY else min(limits.memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
    with suppress(AttributeError):
        signal.alarm(math.ceil(limits.timeout_s) + _GRACE_S)  # its default action ends the process, whatever that is at


def _is_large() -> bool:
    """Whether this process has ever held more than it should keep. Of the process itself: the peak that getrusage tells on Linux is at
    first that of whoever started it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 > _RETIRES_ABOVE_BYTES
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return False
    grain = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * grain > _RETIRES_ABOVE_BYTES


def main() -> None:
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    while len(header := requests.read(FRAME.size)) == FRAME.size:
        [length] = FRAME.unpack(header)
        converter, limits, content, source = pickle.loads(requests.read(length))
        _limit(limits)
        result = answer(converter, content, source)
        with suppress(AttributeError):
            signal.alarm(0)
        result.setdefault("is_last", _is_large())
        try:
            body = json.dumps(result).encode()
        except MemoryError:
            body = json.dumps({"error": "reading it needs too much memory", "is_last": True}).encode()
        answers.write(FRAME.pack(len(body)) + body)
        answers.flush()


if __name__ == "__main__":
    main()
