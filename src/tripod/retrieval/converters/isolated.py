"""Conversion in a process of its own, with limits on time and memory: a hostile file can make any reader loop, crash or eat memory.

What goes to the worker is pickled, because we wrote it; what comes back is JSON, because a hostile file may have.
"""

from __future__ import annotations

import json
import pickle
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from tripod.documents import Document, Line, Page, Section
from tripod.errors import ConfigError, ConversionError, MissingExtraError
from tripod.protocols import Converter

FRAME = struct.Struct(">Q")  # the length of what follows, in bytes
_MAX_ANSWER_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one file may cost."""

    timeout_s: float = 60.0
    memory_bytes: int = 2 << 30  # address space of the worker, where the system can limit it

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.memory_bytes <= 0:
            raise ConfigError(f"{self} leaves no room for a file; give more than 0 of both")


@dataclass(frozen=True, slots=True)
class Isolated:
    """A converter whose files are read by a worker process. A file that exceeds the limits, or ends the worker, is an error of its own.

    The converter inside must be picklable and importable from where Python finds packages, not from the current folder.
    """

    inner: Converter
    limits: Limits = Limits()

    @property
    def suffixes(self) -> frozenset[str]:
        return self.inner.suffixes

    def convert(self, content: bytes, source: str) -> Document:
        with Workers() as workers:
            return workers.convert(self, content, source)


class Workers:
    """Worker processes, started when they are needed and used again, at most `num_workers` at once; who comes later waits."""

    def __init__(self, num_workers: int = 1) -> None:
        self._places = threading.BoundedSemaphore(num_workers)
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def convert(self, converter: Isolated, content: bytes, source: str) -> Document:
        """Blocks until the worker has answered, was given up, or died.

        Raises:
            ConversionError: the file cannot be read, needs more than its limits, or ended the worker.
            MissingExtraError: the package that reads it is not installed.
        """
        with self._places:
            worker = self._take()
            is_reusable = False
            try:
                answer = _ask(worker, converter, content, source)
                is_reusable = not answer.get("is_last", False)
            finally:
                self._give_back(worker, is_reusable)
        if "missing" in answer:
            raise MissingExtraError(*answer["missing"])
        if "error" in answer:
            raise ConversionError(str(answer["error"]))
        return _document(answer["document"], source)

    def close(self) -> None:
        """Ends all workers, those at work too: whoever waits for one gets a ConversionError."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for worker in (*idle, *self._busy):
                worker.kill()
        for worker in idle:  # a busy one is collected by the thread that waits for its answer
            _end(worker)

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise ConversionError("it was not read any more, because the sync was ended")
            worker = self._idle.pop() if self._idle else None
            if worker is None:
                # -P: no module is taken from the current folder, which may be the one with the documents.
                command = [sys.executable, "-P", "-m", "tripod.retrieval.converters.worker"]
                worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: subprocess.Popen[bytes], is_reusable: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            if is_reusable and not self._is_closed:
                self._idle.append(worker)
                return
        worker.kill()
        _end(worker)


def _ask(worker: subprocess.Popen[bytes], converter: Isolated, content: bytes, source: str) -> dict[str, Any]:
    """The worker's answer. Its end, whatever the reason, ends the waiting."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        request = pickle.dumps((converter.inner, converter.limits, content, source))
    except Exception as error:  # pickle raises whatever the object leads it into
        raise ConfigError(f"{converter.inner!r} cannot be sent to a worker process: {error}; define its class in a module") from None
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        worker.kill()

    timer = threading.Timer(converter.limits.timeout_s, give_up)
    timer.start()
    try:
        worker.stdin.write(FRAME.pack(len(request)) + request)
        worker.stdin.flush()
        header = worker.stdout.read(FRAME.size)
        length = FRAME.unpack(header)[0] if len(header) == FRAME.size else 0
        if length > _MAX_ANSWER_BYTES:
            raise ConversionError(f"it makes {length} bytes of text, and at most {_MAX_ANSWER_BYTES} are kept; split it")
        body = worker.stdout.read(length)
    except OSError:  # the pipe broke: the worker is dead
        length, body = 0, b""
    finally:
        timer.cancel()
    if length and len(body) == length:
        return dict(json.loads(body))
    if is_late.is_set():
        raise ConversionError(f"reading it took more than {converter.limits.timeout_s:g} s, so it was given up")
    raise ConversionError(f"the process that read it died ({_death(worker)}), perhaps out of memory")


def _death(worker: subprocess.Popen[bytes]) -> str:
    code = worker.wait()
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Collects a killed process."""
    worker.wait()
    pipes: list[IO[bytes] | None] = [worker.stdin, worker.stdout]
    for pipe in pipes:
        if pipe is not None:
            with suppress(OSError):  # bytes were left for a reader that is dead
                pipe.close()


def _document(fields: dict[str, Any], source: str) -> Document:
    return Document(
        source=source,
        text=fields["text"],
        title=fields["title"],
        sections=tuple(Section(*span) for span in fields["sections"]),
        pages=tuple(Page(*span) for span in fields["pages"]),
        lines=tuple(Line(*span) for span in fields["lines"]),
        metadata=fields["metadata"],
    )
