"""The order of a run from data sets on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.data.conftest import WriteDocuments
from tripod.errors import ConfigError
from tripod.training.data.open_order import open_order
from tripod.training.data.order import Place

RUN = {"seq_length": 16, "batch_size": 4, "num_steps": 10, "seed": 1234}


def cached(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*_doc_idx.npy")}


def test_one_data_set_is_ordered_under_the_name_that_gpt_neox_gives_to_a_list(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    write_numbered([30] * 50, tmp_path / "books")
    order = open_order([tmp_path / "books"], **RUN)
    assert cached(tmp_path) == {"books_train_0_indexmap_41ns_16sl_1234s_doc_idx.npy"}  # ceil(40 x 1.005)
    assert order.num_steps >= 10
    again = open_order([tmp_path / "books"], **RUN)
    assert again.fingerprint == order.fingerprint
    assert np.array_equal(again.batch_at(7), order.batch_at(7))


def test_more_steps_of_another_batch_size_read_the_same_rows(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    write_numbered([30] * 50, tmp_path / "books")
    order = open_order([tmp_path / "books"], **RUN)
    other = open_order([tmp_path / "books"], **RUN | {"batch_size": 2, "num_steps": 22})  # 44 rows: still one epoch
    assert other.fingerprint == order.fingerprint
    assert np.array_equal(np.concatenate([other.batch_at(6), other.batch_at(7)]), order.batch_at(3))


def test_a_split_shares_out_the_documents(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    write_numbered([30] * 50, tmp_path / "books")
    orders = [open_order([tmp_path / "books"], **RUN, part=part, split="8,1,1") for part in ("train", "valid", "test")]
    assert "books_valid_indexmap_40ns_16sl_1234s_doc_idx.npy" in cached(tmp_path)
    seen = [{span.document for row in range(40) for span in order.rows.spans(row)} for order in orders]
    assert seen[0] <= set(range(40))
    assert seen[1] <= set(range(40, 45))
    assert seen[2] <= set(range(45, 50))
    assert orders[1].rows.places(44, 3)[0].row >= 0
    with pytest.raises(ConfigError, match="documents 40 to 44"):
        orders[1].rows.places(3, 3)


def test_a_mixture_serves_its_steps_and_finds_its_tokens(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    write_numbered([30] * 50, tmp_path / "books")
    write_numbered([17] * 30, tmp_path / "code")
    order = open_order([tmp_path / "books", tmp_path / "code"], **RUN, weights=[3, 1])
    assert order.num_steps == 10
    names = {"books_train_0_indexmap_32ns_16sl_1234s_doc_idx.npy", "code_train_1_indexmap_12ns_16sl_1234s_doc_idx.npy"}
    assert cached(tmp_path) == names  # GPT-NeoX would ask for 31 and 11; see `samples_needed`
    batch = order.batch_at(2)
    span = next(span for row in order.rows_of_step(2) for span in order.rows.spans(row) if span.dataset == 1)
    steps = order.steps_of(span.document, span.start, dataset=1)
    assert any(step == 2 and batch[place.row - 8, place.column] == 100 * span.document + span.start for step, place in steps)
    assert all(isinstance(place, Place) for _, place in steps)


def test_maps_are_kept_elsewhere_where_the_data_cannot_be_written(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    write_numbered([30] * 50, tmp_path / "data" / "books")
    before = sorted((tmp_path / "data").iterdir())
    order = open_order([tmp_path / "data" / "books"], **RUN, maps_folder=tmp_path / "maps")
    assert order.steps_of(3, 5) == open_order([tmp_path / "data" / "books"], **RUN, maps_folder=tmp_path / "maps").steps_of(3, 5)
    assert sorted((tmp_path / "data").iterdir()) == before
    assert len(list((tmp_path / "maps").iterdir())) == 6


def test_several_data_sets_are_not_split(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one with a split"):
        open_order([tmp_path / "a", tmp_path / "b"], **RUN, split="9,1")
    with pytest.raises(ConfigError, match="1 data sets and 2 weights"):
        open_order([tmp_path / "a"], **RUN, weights=[1, 2])
