"""From a token back to the row that holds it: the inverses of the index maps.

To look a token up, find the positions in `doc_idx` at which its document is read (`positions`), add up where such a position
begins in the run (`directory`, one entry every 64 positions, so at most 63 sizes are added), divide by the sequence length to
get its sample, and look up the row of that sample (`rows`). The work does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.durable_files import atomic_file
from tripod.training.data.index_maps import IndexMaps

_STRIDE = 64  # positions a directory entry; a power of two that divides _CHUNK
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseMaps:
    """The inverse of an order. D documents in the run (all epochs), N samples."""

    first_document: int
    num_epochs: int
    positions: NDArray[Any]  # [D] positions in doc_idx, grouped by document, ascending within one
    directory: NDArray[np.int64]  # [ceil(D / 64)] the run's token at which positions 0, 64, 128, ... begin
    rows: NDArray[Any]  # [N] the row of each sample

    def positions_of(self, document: int) -> list[int]:
        """Where in doc_idx the document stands: once an epoch."""
        first = (document - self.first_document) * self.num_epochs
        found: list[int] = self.positions[first : first + self.num_epochs].tolist()
        return found

    def begin_of(self, position: int, maps: IndexMaps, sizes: NDArray[np.int32]) -> int:
        """The token of the run, counted from 0, at which the document at this position of doc_idx begins."""
        start = position - position % _STRIDE
        return int(self.directory[position // _STRIDE]) + int(sizes[maps.doc_idx[start:position]].sum(dtype=np.int64))


def build_reverse_maps(maps: IndexMaps, sizes: NDArray[np.int32]) -> ReverseMaps:
    """Invert index maps. Beside its results (4 bytes a document and epoch, 4 a sample) it needs little memory.

    Args:
        maps: of the order.
        sizes: [n] tokens of each document of the data set, aligned.
    """
    num_positions = len(maps.doc_idx)
    first_document = int(min((int(chunk.min()) for _, chunk in _chunks(maps.doc_idx)), default=0))
    num_documents = num_positions // maps.num_epochs
    positions = np.empty(num_positions, np.uint32 if num_positions <= 2**32 else np.int64)
    seen = np.zeros(num_documents, np.min_scalar_type(maps.num_epochs))  # copies of each document met so far
    directory = np.empty(-(-num_positions // _STRIDE), np.int64)
    num_tokens = 0
    for start, chunk in _chunks(maps.doc_idx):
        documents = chunk.astype(np.int64) - first_document
        keys = np.sort(documents << 32 | np.arange(len(chunk)))  # by document, then by position: faster than a stable argsort
        ordered = keys >> 32
        copies = _rank_within_runs(ordered) + seen[ordered]
        positions[ordered * maps.num_epochs + copies] = (keys & 0xFFFFFFFF) + start
        seen[ordered] = copies + 1  # the last copy of a document is assigned last
        lengths = sizes[chunk].astype(np.int64)
        begins = np.cumsum(lengths) - lengths + num_tokens
        directory[start // _STRIDE : start // _STRIDE + -(-len(chunk) // _STRIDE)] = begins[::_STRIDE]
        num_tokens = int(begins[-1] + lengths[-1])
    rows = np.empty(maps.num_samples, maps.shuffle_idx.dtype)
    for start, chunk in _chunks(maps.shuffle_idx):
        rows[chunk] = np.arange(start, start + len(chunk))
    return ReverseMaps(first_document=first_document, num_epochs=maps.num_epochs, positions=positions, directory=directory, rows=rows)


def open_reverse_maps(folder: Path, maps: IndexMaps, sizes: NDArray[np.int32]) -> ReverseMaps:
    """Memory-map the inverse kept in `folder` under the order's fingerprint, after computing and writing it where it is absent."""
    stem = folder / f"reverse-{maps.fingerprint[:16]}"
    files = {name: stem.with_name(f"{stem.name}-{name}.npy") for name in ("positions", "directory", "rows")}
    if not all(file.is_file() for file in files.values()):
        built = build_reverse_maps(maps, sizes)
        for name, file in files.items():
            with atomic_file(file) as stream:
                np.save(stream, getattr(built, name))
    positions, directory, rows = (np.load(file, mmap_mode="r").view(np.ndarray) for file in files.values())
    # A document that is read at all is read in every epoch, so the smallest one is the first of the run's part of the data.
    first_document = int(maps.doc_idx[int(positions[0])])
    return ReverseMaps(first_document=first_document, num_epochs=maps.num_epochs, positions=positions, directory=directory, rows=rows)


def _chunks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(array), _CHUNK):
        yield start, array[start : start + _CHUNK]


def _rank_within_runs(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """[3, 3, 5, 8, 8, 8] -> [0, 1, 0, 0, 1, 2]."""
    index = np.arange(len(ordered))
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return index - np.maximum.accumulate(np.where(starts, index, 0))
