"""Reading Megatron's memory-mapped token files: `PREFIX.bin` holds the tokens, `PREFIX.idx` where each sequence begins.

The index, little-endian: magic (9 bytes), version 1 (u64), dtype code (u8), number of sequences n (u64), length of the document
index m (u64), n sizes in tokens (int32), n byte offsets (int64), m document borders (int64; first 0, then the number of sequences
up to the end of each document). The arrays begin at byte 34, so they are not aligned. The token file has no header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import DatasetError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_FLOAT_CODES = (6, 7)  # float32 and float64, in an order that differs between versions of the format's own writers
_LEGACY_MAGIC = b"TNTIDX\x00\x00"
_LOOK_ALIKE = struct.Struct("<9sQBQ")
_CHUNK = 1 << 20  # entries of an index array looked at together


@dataclass(frozen=True, slots=True)
class IndexLayout:
    """Where the arrays of one `.idx` file lie. Bytes from the start of the file."""

    dtype: np.dtype[Any]
    num_sequences: int
    document_index_length: int

    sizes_at = HEADER.size

    @property
    def pointers_at(self) -> int:
        return self.sizes_at + 4 * self.num_sequences

    @property
    def document_index_at(self) -> int:
        return self.pointers_at + 8 * self.num_sequences

    @property
    def num_bytes(self) -> int:
        return self.document_index_at + 8 * self.document_index_length

    @staticmethod
    def read(head: bytes, num_bytes: int, name: str) -> IndexLayout:
        """Read the header of an index file, and check that the file is as long as the header says.

        Args:
            head: the first 34 bytes of the file, or all of it where it is shorter.
            num_bytes: the length of the file.
            name: what to call the file in an error.

        Raises:
            DatasetError: not this format (the legacy and the fairseq formats are named), truncated, or too long.
        """
        if head.startswith(_LEGACY_MAGIC):
            raise DatasetError(
                f"{name} is a legacy index (magic TNTIDX), which cannot be memory-mapped; build the data again with the mmap format"
            )
        if not head.startswith(MAGIC):
            raise DatasetError(f"{name} begins with {head[:9]!r}, expected {MAGIC!r}: it is not the index of a memory-mapped data set")
        if len(head) >= _LOOK_ALIKE.size:
            *_, num_sequences = _LOOK_ALIKE.unpack_from(head)
            if num_bytes == _LOOK_ALIKE.size + 12 * num_sequences:
                raise DatasetError(
                    f"{name} is fairseq's mmap index, which shares the magic but has no document index "
                    f"({num_bytes} bytes = 26 + 12 x {num_sequences} sequences); convert it by reading it with fairseq and writing it with "
                    "IndexedDatasetWriter"
                )
        if len(head) < HEADER.size:
            raise DatasetError(f"{name} is truncated: {num_bytes} bytes, less than its header of {HEADER.size}; fetch it again")
        _, version, code, num_sequences, document_index_length = HEADER.unpack_from(head)
        if version != 1:
            raise DatasetError(f"{name} has version {version}; only version 1 is known")
        if code in _FLOAT_CODES:
            raise DatasetError(f"{name} has dtype code {code}, a float whose width differs between writers; token ids are integers")
        if code not in DTYPES:
            raise DatasetError(f"{name} has dtype code {code}; known codes are {sorted(DTYPES)}; the file may be damaged: fetch it again")
        layout = IndexLayout(DTYPES[code], num_sequences, document_index_length)
        if num_bytes != layout.num_bytes:
            state = "truncated" if num_bytes < layout.num_bytes else "too long"
            raise DatasetError(
                f"{name} is {state}: {num_bytes} bytes, but its header ({num_sequences} sequences, {document_index_length} document "
                f"borders) says {layout.num_bytes}; fetch it again"
            )
        return layout


class IndexedDataset:
    """Sequences of token ids in a memory-mapped pair of files. One sequence is one document in all data that Tripod builds."""

    def __init__(self, prefix: Path, layout: IndexLayout, index: NDArray[np.uint8], tokens: NDArray[Any]) -> None:
        self.prefix = prefix
        self.layout = layout
        self.dtype = layout.dtype
        n, m = layout.num_sequences, layout.document_index_length
        # Views into the file, not aligned: copy an array before numpy works on all of it, or every call copies it.
        self.sizes: NDArray[np.int32] = _view(index, "<i4", n, layout.sizes_at)
        self.pointers: NDArray[np.int64] = _view(index, "<i8", n, layout.pointers_at)
        self.document_index: NDArray[np.int64] = _view(index, "<i8", m, layout.document_index_at)
        self.all_tokens = tokens

    @staticmethod
    def open(prefix: Path) -> IndexedDataset:
        """Open `PREFIX.idx` and `PREFIX.bin` without reading them; only their lengths are checked. `inspect` checks the rest.

        Raises:
            DatasetError: a file is absent, truncated or of another format, or the two do not belong together.
        """
        index_file, token_file = index_path(prefix), token_path(prefix)
        for file in (index_file, token_file):
            if not file.is_file():
                raise DatasetError(f"{file} is not there; a data set is a pair of files: give their path without .bin and .idx")
        with index_file.open("rb") as stream:
            layout = IndexLayout.read(stream.read(HEADER.size), index_file.stat().st_size, str(index_file))
        index: NDArray[np.uint8] = np.memmap(index_file, np.uint8, mode="r")
        num_bytes = token_file.stat().st_size
        tokens: NDArray[Any] = np.empty(0, layout.dtype)
        if num_bytes and num_bytes % layout.dtype.itemsize == 0:  # an empty file cannot be mapped, an odd one is reported below
            tokens = np.memmap(token_file, layout.dtype, mode="r")
        dataset = IndexedDataset(prefix, layout, index, tokens)
        if num_bytes != dataset.num_token_bytes:
            state = "truncated" if num_bytes < dataset.num_token_bytes else "too long"
            raise DatasetError(
                f"{token_file} is {state}: {num_bytes} bytes, but {index_file.name} says {dataset.num_token_bytes}; "
                "the two do not belong together, or one must be fetched again"
            )
        return dataset

    def __len__(self) -> int:
        return self.layout.num_sequences

    @property
    def num_documents(self) -> int:
        return self.layout.document_index_length - 1

    @property
    def num_token_bytes(self) -> int:
        """The length of the token file, by the last entry of the index."""
        return int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if len(self) else 0

    @property
    def num_tokens(self) -> int:
        return self.num_token_bytes // self.dtype.itemsize

    def size(self, sequence: int) -> int:
        """Tokens of one sequence."""
        return int(self.sizes[sequence])

    def tokens(self, sequence: int, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Tokens [start, stop) of one sequence, by default all: a read-only view into the file, in the data set's dtype."""
        if not 0 <= sequence < len(self):
            raise DatasetError(f"sequence {sequence} of {self.prefix} was asked for; it has sequences 0 to {len(self) - 1}")
        size = int(self.sizes[sequence])
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise DatasetError(f"tokens [{start}, {stop}) of sequence {sequence} of {self.prefix} were asked for; it has {size}")
        begin = int(self.pointers[sequence]) // self.dtype.itemsize
        return self.all_tokens[begin + start : begin + stop]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What a look at every entry of a data set found. Sizes in tokens."""

    dtype: str
    num_sequences: int
    num_documents: int
    num_tokens: int
    num_empty: int
    min_size: int
    max_size: int
    max_token_id: int | None  # None without tokens
    problems: tuple[str, ...]  # empty for a sound data set


def inspect(prefix: Path) -> DatasetReport:
    """Read a data set from end to end, in bounded memory, and check all that the format promises.

    Raises:
        DatasetError: it cannot be opened at all.
    """
    dataset = IndexedDataset.open(prefix)
    num_empty, min_size, max_size, expected_pointer = 0, np.iinfo(np.int32).max, 0, 0
    problems: list[str] = []
    for start in range(0, len(dataset), _CHUNK):
        sizes = np.array(dataset.sizes[start : start + _CHUNK])
        pointers = dataset.pointers[start : start + _CHUNK]
        ends = expected_pointer + np.cumsum(sizes, dtype=np.int64) * dataset.dtype.itemsize
        begins = np.concatenate([[expected_pointer], ends[:-1]])
        wrong = np.flatnonzero(pointers != begins)
        if wrong.size and not problems:  # those behind the first wrong one are usually wrong too
            first = int(wrong[0])
            problems.append(
                f"sequence {start + first} begins at byte {int(pointers[first])}, its predecessors end at {int(begins[first])} "
                "(32-bit overflow in the writer is a usual cause)"
            )
        num_empty += int(np.count_nonzero(sizes == 0))
        min_size, max_size = min(min_size, int(sizes.min())), max(max_size, int(sizes.max()))
        expected_pointer = int(ends[-1])
    if min_size < 0:
        problems.append(f"a sequence has {min_size} tokens")
    problems += _document_index_problems(dataset)
    max_token_id = max((int(chunk.max()) for chunk in _chunks(dataset.all_tokens)), default=None)
    min_token_id = min((int(chunk.min()) for chunk in _chunks(dataset.all_tokens)), default=0) if dataset.dtype.kind == "i" else 0
    if min_token_id < 0:
        problems.append(f"a token id is {min_token_id}")
    return DatasetReport(
        dtype=dataset.dtype.name,
        num_sequences=len(dataset),
        num_documents=dataset.num_documents,
        num_tokens=dataset.num_tokens,
        num_empty=num_empty,
        min_size=min_size if len(dataset) else 0,
        max_size=max_size,
        max_token_id=max_token_id,
        problems=tuple(problems),
    )


def index_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")


def token_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype that GPT-NeoX writes: u16 below 65500 ids, else i32."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


def _document_index_problems(dataset: IndexedDataset) -> list[str]:
    borders = dataset.document_index
    if not len(borders) or borders[0] != 0:
        return ["the document index does not begin with 0"]
    problems = []
    if borders[-1] != len(dataset):
        problems.append(
            f"the document index ends at sequence {int(borders[-1])} of {len(dataset)} (a merge that did not extend it is a usual cause)"
        )
    if any(bool((np.diff(chunk) < 0).any()) for chunk in _chunks(borders)):
        problems.append("the document index decreases")
    return problems


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Each chunk begins with the last entry of the one before, so that neighbours are compared across the seam."""
    for start in range(0, len(array), _CHUNK):
        yield array[max(start - 1, 0) : start + _CHUNK]


def _view(index: NDArray[np.uint8], dtype: str, count: int, offset: int) -> NDArray[Any]:
    return np.frombuffer(index.data, dtype, count, offset)  # unlike a slice with .view, takes any offset
