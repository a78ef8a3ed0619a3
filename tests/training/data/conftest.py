"""Small data sets whose tokens say where they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.data.indexed_dataset_writer import IndexedDatasetWriter

WriteDocuments = Callable[..., IndexedDataset]


@pytest.fixture
def write_numbered(tmp_path_factory: pytest.TempPathFactory) -> WriteDocuments:
    """Writes documents of given sizes; token p of document d is 100 d + p."""

    def write(sizes: list[int], prefix: Path | None = None) -> IndexedDataset:
        prefix = prefix or tmp_path_factory.mktemp("numbered") / "data"
        with IndexedDatasetWriter(prefix, np.dtype("<i4")) as writer:
            for document, size in enumerate(sizes):
                writer.add_document(np.arange(size) + 100 * document)
        return IndexedDataset.open(prefix)

    return write
