"""Where each document of a data set came from, and its labels: a side table beside the token files.

`PREFIX.documents.jsonl` has one line a document, in the order of the data set; `PREFIX.documents.offsets` says where each line
begins (int64, and the end of the last), so any document is looked up at once. Megatron's own files have no room for either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from tripod.errors import DatasetError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecord:
    """What is known of one document besides its tokens."""

    source: str  # the file it came from, relative to the input that was given
    line: int | None = None  # in a jsonl file, from 1
    labels: Mapping[str, Any] = field(default_factory=dict)  # every other field of its jsonl line, as it stood there


class DocumentTable:
    """Reads a side table; only what is asked for is read."""

    def __init__(self, lines: Path, offsets: NDArray[np.int64]) -> None:
        self._lines = lines
        self._offsets = offsets

    @staticmethod
    def open(prefix: Path) -> DocumentTable:
        """Open the table of the data set at `prefix`.

        Raises:
            DatasetError: it is absent, or its two files do not fit together.
        """
        lines, offsets_file = table_paths(prefix)
        if not lines.is_file() or not offsets_file.is_file():
            raise DatasetError(f"{prefix} has no side table ({lines.name}, {offsets_file.name}); `build_dataset` writes one")
        offsets: NDArray[np.int64] = np.memmap(offsets_file, "<i8", mode="r")
        if int(offsets[-1]) != lines.stat().st_size:
            raise DatasetError(f"{lines} has {lines.stat().st_size} bytes, {offsets_file.name} says {int(offsets[-1])}; build them again")
        return DocumentTable(lines, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, document: int) -> DocumentRecord:
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {self._lines.name}, which has {len(self)}")
        start, stop = self._offsets[document : document + 2].tolist()
        with self._lines.open("rb") as stream:
            stream.seek(start)
            return DocumentRecord(**json.loads(stream.read(stop - start)))


class DocumentTableWriter:
    """Writes a side table. A context manager: both files appear when the block ends, neither when it ends by an exception."""

    def __init__(self, prefix: Path) -> None:
        self._targets = table_paths(prefix)
        self._partial = [path.with_name(path.name + ".partial") for path in self._targets]
        self._position = 0

    def __enter__(self) -> Self:
        self._targets[0].parent.mkdir(parents=True, exist_ok=True)
        self._lines: IO[bytes] = self._partial[0].open("wb")
        self._offsets: IO[bytes] = self._partial[1].open("wb")
        self._offsets.write(np.int64(0).tobytes())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()
        self._offsets.close()
        for partial, target in zip(self._partial, self._targets, strict=True):
            if kind is None:
                partial.replace(target)
            partial.unlink(missing_ok=True)

    def add(self, record: DocumentRecord) -> None:
        fields: dict[str, Any] = {"source": record.source}
        if record.line is not None:
            fields["line"] = record.line
        if record.labels:
            fields["labels"] = record.labels
        # A label may hold half of a surrogate pair, which JSON allows as an escape and UTF-8 does not.
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        self._position += self._lines.write(line)
        self._offsets.write(np.int64(self._position).tobytes())

    def add_table(self, prefix: Path) -> None:
        """Append all lines of another table, as they stand."""
        lines, offsets = table_paths(prefix)
        with lines.open("rb") as stream:
            shutil.copyfileobj(stream, self._lines, _CHUNK)
        ends: NDArray[np.int64] = np.memmap(offsets, "<i8", mode="r")
        for start in range(1, len(ends), _CHUNK):
            self._offsets.write((ends[start : start + _CHUNK] + self._position).tobytes())
        self._position += int(ends[-1])


def merge_tables(prefixes: Sequence[Path], out: Path) -> None:
    """Join side tables in the given order.

    Raises:
        DatasetError: one is absent or unsound.
    """
    for prefix in prefixes:
        DocumentTable.open(prefix)
    with DocumentTableWriter(out) as writer:
        for prefix in prefixes:
            writer.add_table(prefix)


def table_paths(prefix: Path) -> tuple[Path, Path]:
    return prefix.with_name(prefix.name + ".documents.jsonl"), prefix.with_name(prefix.name + ".documents.offsets")
