"""Pre-shuffled rows, as Pythia publishes them: a data set whose sequences are the rows of a run, in order, one length each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, DatasetError
from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.data.indexed_dataset_writer import IndexedDatasetWriter
from tripod.training.data.order import Place, Rows, Span, TokenStore, check_row, rows_hash
from tripod.training.data.progress import Progress, no_progress


@dataclass(frozen=True, slots=True, eq=False)
class PreshuffledRows:
    """Rows that lie on disk in the order in which they are trained. They do not say which documents they were cut from."""

    store: TokenStore
    seq_length: int

    @staticmethod
    def open(prefix: Path) -> PreshuffledRows:
        """Open a local data set of rows.

        Raises:
            DatasetError: it cannot be opened, is empty, or its sequences are of different lengths.
        """
        dataset = IndexedDataset.open(prefix)
        sizes = np.array(dataset.sizes)
        if not len(sizes) or int(sizes.min()) != int(sizes.max()) or sizes[0] < 2:
            raise DatasetError(f"{prefix} does not hold rows of one length (at least 2 tokens); open it as documents and build index maps")
        return PreshuffledRows(dataset, int(sizes[0]) - 1)

    @property
    def num_rows(self) -> int:
        return len(self.store)

    @property
    def fingerprint(self) -> str:
        """Of the shape and of a few dozen rows spread over the run; whether all of them are whole, the hashes of their files say."""
        facts = {"order": "pre-shuffled", "seq_length": self.seq_length, "num_rows": self.num_rows, "rows": rows_hash(self)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def spans(self, row: int) -> tuple[Span, ...]:
        check_row(row, self.num_rows)
        return (Span(None, 0, self.seq_length + 1, 0),)

    def row(self, row: int) -> NDArray[Any]:
        check_row(row, self.num_rows)
        return self.store.tokens(row, 0, self.seq_length + 1)

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]:
        """Cannot be answered: pre-shuffled rows do not know documents.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("pre-shuffled rows do not know their documents; open the documents with their index maps instead")


def write_rows(rows: Rows, num_rows: int, prefix: Path, dtype: np.dtype[Any], *, progress: Progress = no_progress) -> None:
    """Write the first rows of a run one after the other, so that batches are read without index maps.

    Raises:
        ConfigError: the order has fewer rows.
    """
    if num_rows > rows.num_rows:
        raise ConfigError(f"num_rows={num_rows}; the order has {rows.num_rows}")
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for row in range(num_rows):
            writer.add_document(rows.row(row))
            if row % 1024 == 1023 or row == num_rows - 1:
                progress("write rows", row + 1, num_rows)
