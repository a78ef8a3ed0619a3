"""A suffix array over integers: every place of a sequence in a text, by two binary searches.

Manber & Myers 1993; built by libdivsufsort. Many searches go side by side: each round of all their binary searches is one numpy call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import MissingExtraError

BLOCK = 1024  # entries of the array whose smallest place is kept
_WINDOW = 8  # symbols compared at once; what agrees in all of them is compared further
_CHUNK = 1 << 24
_END = -1  # behind the last symbol of a pattern


def symbol_width(largest: int) -> int:
    """Bytes that a symbol takes when suffixes are sorted."""
    return max(1, (largest.bit_length() + 7) // 8)


def sort_suffixes(text: NDArray[Any], width: int) -> NDArray[np.int32]:
    """The places of a text in the order of the suffixes that begin there.

    Suffixes of bytes are sorted, and those kept that begin with a symbol. It takes 5 * `width` bytes a symbol beside text and result.

    Args:
        text: [n] integers from 0 to 256 ** `width` - 1; below 2 ** 31 / `width` of them.

    Raises:
        MissingExtraError: pydivsufsort is not installed.
    """
    try:
        from pydivsufsort import divsufsort
    except ModuleNotFoundError as error:
        raise MissingExtraError("pydivsufsort", "training", "sorting the suffixes of training data") from error
    if not len(text):
        return np.empty(0, np.int32)
    # Big-endian, so that bytes sort as the numbers that they make.
    key = np.empty((len(text), width), np.uint8)
    for start in range(0, len(text), _CHUNK):
        key[start : start + _CHUNK] = text[start : start + _CHUNK].astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - width :]
    places: NDArray[np.int32] = divsufsort(key.ravel())
    if width == 1:
        return places
    found = np.empty(len(text), np.int32)
    filled = 0
    for start in range(0, len(places), _CHUNK):
        chunk = places[start : start + _CHUNK]
        chunk = chunk[chunk % width == 0] // width
        found[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return found


def smallest_of_blocks(suffixes: NDArray[np.int32]) -> NDArray[np.int32]:
    """The smallest place of each `BLOCK` entries: [ceil(n / BLOCK)]."""
    return np.minimum.reduceat(suffixes, np.arange(0, len(suffixes), BLOCK)) if len(suffixes) else suffixes


@dataclass(frozen=True, slots=True, eq=False)
class SuffixArray:
    """A text and its sorted suffixes. Patterns are stretches [start, stop) of one query."""

    text: NDArray[Any]  # [n]; its last symbol occurs in no pattern
    suffixes: NDArray[np.int32]  # [n]
    smallest: NDArray[np.int32]  # see `smallest_of_blocks`

    def bounds(
        self, query: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which suffixes begin with each of the patterns: `suffixes[first:last]`; as many as the pattern occurs.

        Args:
            query: [m], none of them negative.
            starts, stops: [p] with 0 <= start <= stop <= m.
        """
        return self._search(query, starts, stops, is_upper=False), self._search(query, starts, stops, is_upper=True)

    def longest(self, query: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many symbols from each place of the query on occur together somewhere in the text: [m] (its matching statistics)."""
        if not len(self.text):
            return np.zeros(len(query), np.int64)
        starts = np.arange(len(query))
        stops = np.full(len(query), len(query))
        # Where the rest of the query would stand among the suffixes, its two neighbours share most with it.
        below = self._search(query, starts, stops, is_upper=False)
        shared = [
            self._compare(query, starts, stops, self.suffixes[np.clip(rank, 0, len(self.suffixes) - 1)].astype(np.int64))[1]
            for rank in (below - 1, below)
        ]
        return np.maximum(*shared)

    def first(self, first: int, last: int) -> int | None:
        """The smallest place among `suffixes[first:last]`, without reading all of them."""
        if first >= last:
            return None
        inner, outer = -(-first // BLOCK), last // BLOCK  # whole blocks
        if inner >= outer:
            return int(self.suffixes[first:last].min())
        edges = np.concatenate([self.suffixes[first : inner * BLOCK], self.suffixes[outer * BLOCK : last]])
        return min(int(self.smallest[inner:outer].min()), int(edges.min()) if len(edges) else len(self.text))

    def _search(
        self, query: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64], *, is_upper: bool
    ) -> NDArray[np.int64]:
        """The first suffix that is not below each pattern; the first that is above it and does not begin with it."""
        low = np.zeros(len(starts), np.int64)
        high = np.full(len(starts), len(self.suffixes))
        while True:
            (active,) = np.nonzero(low < high)
            if not len(active):
                return low
            middle = (low[active] + high[active]) // 2
            sign, _ = self._compare(query, starts[active], stops[active], self.suffixes[middle].astype(np.int64))
            is_left = sign <= 0 if is_upper else sign < 0
            low[active] = np.where(is_left, middle + 1, low[active])
            high[active] = np.where(is_left, high[active], middle)

    def _compare(
        self, query: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Suffixes with patterns: -1, 0 or 1 as the one at a place is below, begins with, or is above; and how many symbols they share."""
        sign = np.zeros(len(starts), np.int64)
        shared = np.zeros(len(starts), np.int64)
        active = np.arange(len(starts))
        window = np.arange(_WINDOW)
        while len(active):
            done = shared[active, None] + window
            of_text = np.take(self.text, places[active, None] + done, mode="clip").astype(np.int64)
            at = starts[active, None] + done
            of_query = np.where(at < stops[active, None], np.take(query, at, mode="clip"), _END)
            differs = of_text != of_query  # an end differs from all symbols, and the last symbol of the text from all patterns
            column = differs.argmax(1)
            is_found = differs.any(1)
            shared[active] += np.where(is_found, column, _WINDOW)
            rows = np.arange(len(active))
            symbol = of_query[rows, column]
            sign[active] = np.where(is_found & (symbol != _END), np.sign(of_text[rows, column] - symbol), 0)
            active = active[~is_found]
        return sign, shared
