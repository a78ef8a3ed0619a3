"""Suffix arrays against sorting and searching by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tripod.training.ngrams.suffix_array import BLOCK, SuffixArray, smallest_of_blocks, sort_suffixes, symbol_width

WIDTHS = [(1, 3), (1, 250), (2, 60_000), (3, 70_000), (4, 2**31)]  # bytes, and how many different symbols


def _text(num_symbols: int, *, length: int = 300) -> np.ndarray:
    """Rows that end with 0, with a stretch that stands twice."""
    generator = np.random.default_rng(num_symbols)
    text = generator.integers(1, num_symbols, length)
    text[:: length // 7] = 0
    return np.concatenate([text, text[20:90], [0]])


def _suffix_array(text: np.ndarray, width: int) -> SuffixArray:
    suffixes = sort_suffixes(text, width)
    return SuffixArray(text, suffixes, smallest_of_blocks(suffixes))


def _places(text: np.ndarray, pattern: np.ndarray) -> list[int]:
    wanted = pattern.tolist()
    return [place for place in range(len(text)) if text[place : place + len(wanted)].tolist() == wanted]


@pytest.mark.parametrize(("width", "num_symbols"), WIDTHS)
def test_suffixes_are_sorted_as_lists_of_numbers_are(width: int, num_symbols: int) -> None:
    text = _text(num_symbols)
    assert sort_suffixes(text, width).tolist() == sorted(range(len(text)), key=lambda place: text[place:].tolist())


@pytest.mark.parametrize(("width", "num_symbols"), WIDTHS)
def test_bounds_hold_exactly_the_places_of_a_pattern(width: int, num_symbols: int) -> None:
    text = _text(num_symbols)
    array = _suffix_array(text, width)
    query = np.concatenate([text[21:60], text[200:230] + 1])
    query = query[query > 0]
    starts = np.repeat(np.arange(len(query) - 12), 3)
    stops = starts + np.tile([1, 2, 11], len(starts) // 3)
    first, last = array.bounds(query, starts, stops)
    for start, stop, low, high in zip(starts, stops, first, last, strict=True):
        assert sorted(array.suffixes[low:high].tolist()) == _places(text, query[start:stop])


@pytest.mark.parametrize(("width", "num_symbols"), WIDTHS)
def test_the_longest_match_from_each_place_is_found(width: int, num_symbols: int) -> None:
    text = _text(num_symbols)
    query = np.concatenate([text[25:85], text[230:240]])
    query = query[query > 0]
    for start, length in enumerate(_suffix_array(text, width).longest(query).tolist()):
        assert length == 0 or _places(text, query[start : start + length])
        assert start + length == len(query) or not _places(text, query[start : start + length + 1])


def test_the_first_place_of_a_range_is_its_smallest_however_many_blocks_it_spans() -> None:
    generator = np.random.default_rng(5)
    suffixes = generator.permutation(5 * BLOCK + 77).astype(np.int32)
    array = SuffixArray(np.zeros(len(suffixes), np.uint16), suffixes, smallest_of_blocks(suffixes))
    for first, last in [(0, 1), (3, 900), (1000, 1050), (1024, 2048), (1, 5000), (1024, len(suffixes)), (0, len(suffixes)), (2047, 2049)]:
        assert array.first(first, last) == suffixes[first:last].min()
    assert array.first(7, 7) is None


def test_a_symbol_takes_as_many_bytes_as_the_largest_needs() -> None:
    assert [symbol_width(largest) for largest in (0, 255, 256, 65_535, 65_536, 2**24)] == [1, 1, 2, 2, 3, 4]
