"""Steps, rows, documents, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.conftest import WriteDocuments
from tripod.errors import ConfigError, DatasetError
from tripod.training.data import reverse_maps
from tripod.training.data.index_maps import OrderSpec, build_index_maps
from tripod.training.data.order import DataOrder, PackedRows, Place, Span, check_fingerprint
from tripod.training.data.reverse_maps import build_reverse_maps, open_reverse_maps

GOLDEN_SIZES = [5, 9, 3, 12, 7, 1, 8]
GOLDEN = OrderSpec(seq_length=8, num_samples=9, seed=1234)
SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=20).filter(any)
LAW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packed(write_numbered: WriteDocuments, sizes: list[int], spec: OrderSpec) -> PackedRows:
    dataset = write_numbered(sizes)
    return PackedRows(dataset, build_index_maps(np.array(dataset.sizes), spec))


@pytest.fixture
def golden(write_numbered: WriteDocuments) -> PackedRows:
    return packed(write_numbered, GOLDEN_SIZES, GOLDEN)


def test_the_golden_rows_hold(golden: PackedRows) -> None:
    assert golden.row(0).tolist() == [406, *range(600, 608)]
    assert golden.row(1).tolist() == [*range(602, 608), 300, 301, 302]
    assert golden.spans(0) == (Span(4, 6, 7, 0), Span(6, 0, 8, 1))


def test_the_last_sample_is_never_served(golden: PackedRows) -> None:
    assert golden.num_rows == 10  # of 11 samples
    with pytest.raises(ConfigError, match="rows 0 to 9"):
        golden.row(10)


@given(sizes=SIZES, seq_length=st.integers(1, 30), num_samples=st.integers(2, 30), seed=st.integers(0, 99))
@LAW
def test_rows_have_one_length_and_their_spans_say_what_is_in_them(
    write_numbered: WriteDocuments, sizes: list[int], seq_length: int, num_samples: int, seed: int
) -> None:
    rows = packed(write_numbered, sizes, OrderSpec(seq_length=seq_length, num_samples=num_samples, seed=seed))
    for row in range(rows.num_rows):
        by_spans = [100 * span.document + token for span in rows.spans(row) for token in range(span.start, span.stop)]
        assert rows.row(row).tolist() == by_spans
        assert len(by_spans) == seq_length + 1
        columns = np.cumsum([0, *(span.stop - span.start for span in rows.spans(row))])
        assert [span.column for span in rows.spans(row)] == columns[:-1].tolist()


@given(sizes=SIZES, seq_length=st.integers(1, 30), num_samples=st.integers(2, 60), seed=st.integers(0, 99), data=st.data())
@LAW
def test_places_are_exactly_where_a_search_through_all_rows_finds_the_token(
    write_numbered: WriteDocuments, sizes: list[int], seq_length: int, num_samples: int, seed: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, next(i for i, size in enumerate(sizes) if size)))
    spec = OrderSpec(seq_length=seq_length, num_samples=num_samples, seed=seed, documents=range(first, len(sizes)))
    rows = packed(write_numbered, sizes, spec)
    everything = np.stack([rows.row(row) for row in range(rows.num_rows)]) if rows.num_rows else np.empty((0, 1), np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reverse_maps, "_CHUNK", 8)  # several chunks and strides even here
        patch.setattr(reverse_maps, "_STRIDE", 4)
        for document in range(first, len(sizes)):
            for offset in range(sizes[document]):
                found = [Place(row, column) for row, column in np.argwhere(everything == 100 * document + offset).tolist()]
                assert list(rows.places(document, offset)) == found


def test_the_inverse_is_kept_under_the_fingerprint(golden: PackedRows, tmp_path: Path) -> None:
    sizes = np.array(GOLDEN_SIZES, np.int32)
    first = open_reverse_maps(tmp_path, golden.maps, sizes)
    again = open_reverse_maps(tmp_path, golden.maps, sizes)
    fresh = build_reverse_maps(golden.maps, sizes)
    for name in ("positions", "directory", "rows"):
        assert getattr(first, name).tolist() == getattr(again, name).tolist() == getattr(fresh, name).tolist()
    assert {file.name[:24] for file in tmp_path.iterdir()} == {"reverse-" + golden.fingerprint[:16]}
    kept = PackedRows(golden.store, golden.maps, reverse_folder=tmp_path)
    assert kept.places(6, 3) == golden.places(6, 3) != ()


def test_a_step_trains_consecutive_rows_however_many_devices_share_it(golden: PackedRows) -> None:
    order = DataOrder(golden, batch_size=4)
    assert order.num_steps == 2
    assert order.rows_of_step(1) == range(4, 8)
    batch = order.batch_at(1)
    assert batch.tolist() == [golden.row(row).tolist() for row in (4, 5, 6, 7)]
    shares = [order.batch_at(1, slice(rank * 2, rank * 2 + 2)) for rank in (0, 1)]
    assert np.array_equal(np.concatenate(shares), batch)
    with pytest.raises(ConfigError, match="steps 0 to 1"):
        order.batch_at(2)


def test_the_steps_of_a_token_are_those_whose_batch_holds_it(golden: PackedRows) -> None:
    order = DataOrder(golden, batch_size=3)
    for step, place in order.steps_of(6, 3):
        assert order.batch_at(step)[place.row - 3 * step, place.column] == 603
    assert len(order.steps_of(6, 3)) == sum(int((order.batch_at(step) == 603).sum()) for step in range(order.num_steps))


@pytest.mark.parametrize("call", [(7, 0), (-1, 0), (0, 5), (0, -1)])
def test_a_token_that_is_not_there_is_refused(golden: PackedRows, call: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="has none"):
        golden.places(*call)


def test_maps_of_other_data_are_noticed(golden: PackedRows, write_numbered: WriteDocuments) -> None:
    stranger = PackedRows(write_numbered([12, 12, 12, 12, 12, 12, 12]), golden.maps)
    with pytest.raises(DatasetError, match="made from other data"):
        [stranger.row(row) for row in range(stranger.num_rows)]


def test_a_run_does_not_go_on_with_another_order(golden: PackedRows, write_numbered: WriteDocuments) -> None:
    other = packed(write_numbered, GOLDEN_SIZES, OrderSpec(seq_length=8, num_samples=9, seed=1))
    check_fingerprint(golden.fingerprint, DataOrder(golden, 2).fingerprint)
    with pytest.raises(ConfigError, match="begin a new run"):
        check_fingerprint(golden.fingerprint, other.fingerprint)
