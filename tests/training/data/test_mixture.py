"""Blending data sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.conftest import WriteDocuments
from tripod.errors import ConfigError, DatasetError
from tripod.training.data.index_maps import OrderSpec, build_index_maps
from tripod.training.data.mixture import MixedRows, blending_index, samples_needed
from tripod.training.data.order import PackedRows

WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=7) | st.lists(st.integers(1, 5), min_size=1, max_size=5)


def one_by_one(weights: list[float], num_rows: int) -> tuple[list[int], list[int]]:
    """The rule as it is said, row by row."""
    shares = np.array(weights, np.float64)
    shares = [float(share) for share in shares / shares.sum()]
    counts = [0] * len(shares)
    datasets, samples = [], []
    for row in range(num_rows):
        behind = [share * float(max(row, 1)) - float(count) for share, count in zip(shares, counts, strict=True)]
        chosen = behind.index(max(behind))
        datasets.append(chosen)
        samples.append(counts[chosen])
        counts[chosen] += 1
    return datasets, samples


@given(weights=WEIGHTS, num_rows=st.integers(1, 2000))
@settings(max_examples=200, deadline=None)
def test_the_blend_equals_the_rule_row_by_row(weights: list[float], num_rows: int) -> None:
    index = blending_index(weights, num_rows)
    datasets, samples = one_by_one(weights, num_rows)
    assert index.dataset.tolist() == datasets
    assert index.sample.tolist() == samples


def test_a_blend_by_hand() -> None:
    # j: behind of (0.5, 0.3, 0.2)            -> chosen
    # 0: (0.5, 0.3, 0.2) -> 0;  1: (-0.5, 0.3, 0.2) -> 1;  2: (0, -0.4, 0.4) -> 2;  3: (0.5, -0.1, -0.4) -> 0;  4: (0, 0.2, -0.2) -> 1
    assert blending_index([5, 3, 2], 5).dataset.tolist() == [0, 1, 2, 0, 1]


def test_the_parts_keep_their_proportion() -> None:
    counts = np.bincount(blending_index([0.6, 0.3, 0.1], 100_000).dataset)
    assert np.abs(counts - [60_000, 30_000, 10_000]).max() <= 2


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, float("inf")], [1] * 255])
def test_weights_that_make_no_mixture_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="positive numbers"):
        blending_index(weights, 10)


def mixed(write_numbered: WriteDocuments, weights: list[float], num_rows: int, seed: int = 1) -> MixedRows:
    parts = []
    for number, weight in enumerate(weights):
        dataset = write_numbered([5 + number, 9, 3, 12])
        spec = OrderSpec(seq_length=6, num_samples=samples_needed(num_rows, weight / sum(weights)), seed=seed)
        parts.append(PackedRows(dataset, build_index_maps(np.array(dataset.sizes), spec)))
    return MixedRows.of(parts, weights, num_rows)


def test_rows_of_a_mixture_are_the_next_rows_of_its_parts(write_numbered: WriteDocuments) -> None:
    rows = mixed(write_numbered, [5, 3, 2], 5)
    expected = [rows.parts[0].row(0), rows.parts[1].row(0), rows.parts[2].row(0), rows.parts[0].row(1), rows.parts[1].row(1)]
    assert [rows.row(row).tolist() for row in range(5)] == [row.tolist() for row in expected]
    assert [{span.dataset for span in rows.spans(row)} for row in range(5)] == [{0}, {1}, {2}, {0}, {1}]


@given(weights=st.lists(st.floats(0.05, 20), min_size=1, max_size=4), num_rows=st.integers(1, 120))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_places_of_a_mixture_are_where_its_spans_say(write_numbered: WriteDocuments, weights: list[float], num_rows: int) -> None:
    rows = mixed(write_numbered, weights, num_rows)
    dataset, document, offset = len(weights) - 1, 3, 7
    expected = [
        (row, span.column + offset - span.start)
        for row in range(num_rows)
        for span in rows.spans(row)
        if (span.dataset, span.document) == (dataset, document) and span.start <= offset < span.stop
    ]
    assert [(place.row, place.column) for place in rows.places(document, offset, dataset=dataset)] == expected


def test_a_longer_mixture_continues_a_shorter_one(write_numbered: WriteDocuments) -> None:
    longer, other = mixed(write_numbered, [2, 1], 21), mixed(write_numbered, [1, 2], 21)
    shorter = MixedRows.of(longer.parts, longer.weights, 20)
    assert longer.fingerprint == shorter.fingerprint != other.fingerprint
    assert longer.index.dataset[:20].tolist() == shorter.index.dataset.tolist()


def test_a_part_with_too_few_rows_is_refused(write_numbered: WriteDocuments) -> None:
    parts = mixed(write_numbered, [1, 1], 10).parts
    with pytest.raises(DatasetError, match=r"data set 0 has \d+ rows, the mixture takes 500"):
        MixedRows.of(parts, [1, 1], 1000)


def test_only_a_short_run_asks_for_more_than_gpt_neox_does() -> None:
    assert samples_needed(146_432_000, 1.0) == 147_164_160
    assert samples_needed(1000, 0.5) == 503  # 500 x 1.005 = 502.5
    assert samples_needed(100, 0.5) == 52  # GPT-NeoX: 51, of which it serves 50; the blend may take 51
