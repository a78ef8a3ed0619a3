"""Writing Megatron's memory-mapped token files, and joining several into one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tripod.errors import DatasetError
from tripod.training.data.document_table import merge_tables, table_paths
from tripod.training.data.indexed_dataset import DTYPES, HEADER, MAGIC, IndexedDataset, index_path, token_path

_CHUNK = 1 << 20  # index entries, or mebibytes of tokens, copied at once
_MAX_SIZE = np.iinfo(np.int32).max


class IndexedDatasetWriter:
    """Writes `PREFIX.bin` and `PREFIX.idx`, byte for byte as GPT-NeoX does. Memory does not grow with the data.

    A context manager: both files appear when the block ends, complete; when it ends by an exception, neither does.
    """

    def __init__(self, prefix: Path, dtype: np.dtype[Any]) -> None:
        codes = {known: code for code, known in DTYPES.items()}
        if dtype not in codes:
            raise DatasetError(f"dtype={dtype} cannot be written; choose from {', '.join(known.name for known in codes)}")
        self.prefix = prefix
        self.dtype = dtype
        self.num_sequences = 0
        self.num_documents = 0
        self.num_tokens = 0
        self._code = codes[dtype]
        self._partial_bin = prefix.with_name(prefix.name + ".bin.partial")
        self._partial_idx = prefix.with_name(prefix.name + ".idx.partial")

    def __enter__(self) -> Self:
        folder = self.prefix.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens: IO[bytes] = self._partial_bin.open("wb")
        self._sizes: IO[bytes] = tempfile.TemporaryFile(dir=folder)
        self._borders: IO[bytes] = tempfile.TemporaryFile(dir=folder)
        self._borders.write(np.int64(0).tobytes())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._tokens.close()
            if kind is None:
                self._write_index()
                index_path(self.prefix).unlink(missing_ok=True)  # whenever this stops, an old index never stands beside new tokens
                self._partial_bin.replace(token_path(self.prefix))
                self._partial_idx.replace(index_path(self.prefix))
        finally:
            self._sizes.close()
            self._borders.close()
            self._partial_bin.unlink(missing_ok=True)
            self._partial_idx.unlink(missing_ok=True)

    def add_sequence(self, tokens: ArrayLike) -> None:
        """Append one sequence to the current document.

        Args:
            tokens: [size] token ids.

        Raises:
            DatasetError: an id does not fit the dtype, or the sequence is too long for an int32 size.
        """
        ids = np.asarray(tokens)
        if ids.size:
            self._check_range(ids)
        if ids.size > _MAX_SIZE:
            raise DatasetError(f"a sequence of {ids.size} tokens was given; the format holds at most {_MAX_SIZE}: split it")
        self._tokens.write(ids.astype(self.dtype).tobytes())
        self._sizes.write(np.int32(ids.size).tobytes())
        self.num_sequences += 1
        self.num_tokens += ids.size

    def end_document(self) -> None:
        self._borders.write(np.int64(self.num_sequences).tobytes())
        self.num_documents += 1

    def add_document(self, tokens: ArrayLike) -> None:
        """Append a document of one sequence, [size] token ids."""
        self.add_sequence(tokens)
        self.end_document()

    def add_dataset(self, dataset: IndexedDataset) -> None:
        """Append all sequences and documents of another data set.

        Raises:
            DatasetError: its dtype differs, or its document index does not cover its sequences.
        """
        if dataset.dtype != self.dtype:
            raise DatasetError(
                f"{dataset.prefix} holds {dataset.dtype.name} tokens, {self.prefix} {self.dtype.name}; they cannot be joined"
            )
        borders = dataset.document_index
        if not len(borders) or borders[0] != 0 or borders[-1] != len(dataset):
            raise DatasetError(
                f"the document index of {dataset.prefix} does not cover its {len(dataset)} sequences (see `inspect`); build it again"
            )
        with token_path(dataset.prefix).open("rb") as stream:
            shutil.copyfileobj(stream, self._tokens, _CHUNK)
        for start in range(0, len(dataset), _CHUNK):
            self._sizes.write(dataset.sizes[start : start + _CHUNK].tobytes())
        for start in range(1, len(borders), _CHUNK):
            self._borders.write((borders[start : start + _CHUNK] + self.num_sequences).tobytes())
        self.num_sequences += len(dataset)
        self.num_documents += dataset.num_documents
        self.num_tokens += dataset.num_tokens

    def _check_range(self, ids: NDArray[Any]) -> None:
        smallest, largest = int(ids.min()), int(ids.max())
        allowed = np.iinfo(self.dtype)
        if smallest < allowed.min or largest > allowed.max:
            raise DatasetError(
                f"token ids from {smallest} to {largest} do not fit {self.dtype.name}; choose the dtype by token_dtype(vocab_size)"
            )

    def _write_index(self) -> None:
        """The sizes lie in a file of their own until their number, which stands before them, is known."""
        with self._partial_idx.open("wb") as index:
            index.write(HEADER.pack(MAGIC, 1, self._code, self.num_sequences, self.num_documents + 1))
            self._sizes.seek(0)
            shutil.copyfileobj(self._sizes, index, 4 * _CHUNK)
            self._sizes.seek(0)
            pointer = 0
            while block := self._sizes.read(4 * _CHUNK):
                index.write((pointers := exclusive_byte_offsets(np.frombuffer(block, "<i4"), self.dtype.itemsize, pointer))[:-1].tobytes())
                pointer = int(pointers[-1])
            self._borders.seek(0)
            shutil.copyfileobj(self._borders, index, 8 * _CHUNK)


def exclusive_byte_offsets(sizes: NDArray[np.int32], itemsize: int, first: int = 0) -> NDArray[np.int64]:
    """Where sequences begin and, in the last entry, end. [n] sizes in tokens -> [n + 1] bytes.

    In int64 throughout: 2^31 tokens are passed by any large corpus, and a sum in the dtype of the sizes would wrap silently.
    """
    offsets = np.empty(len(sizes) + 1, np.int64)
    offsets[0] = first
    np.cumsum(sizes, dtype=np.int64, out=offsets[1:])
    offsets[1:] *= itemsize
    offsets[1:] += first
    return offsets


def merge(prefixes: Sequence[Path], out: Path) -> None:
    """Join data sets in the given order, document indexes and side tables included.

    Raises:
        DatasetError: none is given, one is unsound, their dtypes differ, some have a side table and others not, or `out` is one of
            them.
    """
    if not prefixes:
        raise DatasetError("no data set to merge was given; name at least one")
    if out.resolve() in {prefix.resolve() for prefix in prefixes}:
        raise DatasetError(f"{out} is both input and output of a merge; give the output another name")
    datasets = [IndexedDataset.open(prefix) for prefix in prefixes]
    with_table = [prefix for prefix in prefixes if table_paths(prefix)[0].exists()]
    if with_table and len(with_table) < len(prefixes):
        without = ", ".join(str(prefix) for prefix in prefixes if prefix not in with_table)
        raise DatasetError(f"some data sets have a side table of sources and labels, but not {without}; give all of them one, or none")
    with IndexedDatasetWriter(out, datasets[0].dtype) as writer:
        for dataset in datasets:
            writer.add_dataset(dataset)
        if with_table:
            merge_tables(prefixes, out)
