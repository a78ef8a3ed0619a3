"""Pre-shuffled rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.data.conftest import WriteDocuments
from tripod.errors import ConfigError, DatasetError
from tripod.training.data.index_maps import OrderSpec, build_index_maps
from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.data.order import DataOrder, PackedRows
from tripod.training.data.rows import PreshuffledRows, write_rows


@pytest.fixture
def packed(write_numbered: WriteDocuments) -> PackedRows:
    dataset = write_numbered([5, 9, 3, 12, 7, 1, 8])
    return PackedRows(dataset, build_index_maps(np.array(dataset.sizes), OrderSpec(seq_length=8, num_samples=9, seed=1234)))


def test_rows_written_one_after_the_other_give_the_same_batches(packed: PackedRows, tmp_path: Path) -> None:
    write_rows(packed, 10, tmp_path / "document", np.dtype("<u2"))
    flat = IndexedDataset.open(tmp_path / "document")
    assert flat.sizes.tolist() == [9] * 10
    written = DataOrder(PreshuffledRows.open(tmp_path / "document"), batch_size=5)
    for step in (0, 1):
        assert np.array_equal(written.batch_at(step), DataOrder(packed, batch_size=5).batch_at(step))


def test_the_fingerprint_tells_two_orders_of_the_same_tokens_apart(packed: PackedRows, tmp_path: Path) -> None:
    write_rows(packed, 10, tmp_path / "a", np.dtype("<u2"))
    other = PackedRows(packed.store, build_index_maps(np.array(packed.store.sizes), OrderSpec(seq_length=8, num_samples=9, seed=1)))
    write_rows(other, 10, tmp_path / "b", np.dtype("<i4"))
    write_rows(packed, 10, tmp_path / "c", np.dtype("<i4"))
    a, b, c = (PreshuffledRows.open(tmp_path / name).fingerprint for name in "abc")
    assert a == c != b


def test_documents_of_different_lengths_are_no_rows(packed: PackedRows) -> None:
    with pytest.raises(DatasetError, match="rows of one length"):
        PreshuffledRows.open(packed.store.prefix)


def test_rows_beyond_the_order_are_not_written(packed: PackedRows, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the order has 10"):
        write_rows(packed, 11, tmp_path / "x", np.dtype("<u2"))


def test_pre_shuffled_rows_say_that_they_do_not_know_documents(packed: PackedRows, tmp_path: Path) -> None:
    write_rows(packed, 10, tmp_path / "document", np.dtype("<u2"))
    rows = PreshuffledRows.open(tmp_path / "document")
    assert rows.spans(3)[0].document is None
    with pytest.raises(ConfigError, match="do not know their documents"):
        rows.places(0, 0)
