"""Several data sets read in a fixed proportion, as GPT-NeoX blends them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, DatasetError
from tripod.training.data.index_maps import neox_num_samples
from tripod.training.data.order import Place, Rows, Span, check_row

_MAX_DATASETS = 254  # their numbers are kept in a byte
_NUM_LANES = 1024  # stretches of the index computed side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendingIndex:
    """Which row of which data set each row of the mixture is."""

    dataset: NDArray[np.uint8]  # [num_rows]
    sample: NDArray[np.int64]  # [num_rows] how many rows of that data set came before


def blending_index(weights: Sequence[float], num_rows: int) -> BlendingIndex:
    """GPT-NeoX's greedy blend: row j goes to the data set with the largest weight * max(j, 1) - rows so far; ties to the first.

    The rule is sequential, but its memory is short: two walks that begin with different counts soon agree. So the rows are cut
    into stretches that are walked side by side, each from a guess; a stretch whose guess was not what its predecessor ended with is
    walked again from there, until all agree. The result is exact.

    Args:
        weights: of the data sets; only their proportions count.
        num_rows: rows of the mixture.

    Raises:
        ConfigError: no or too many data sets, or a weight that is not positive.
    """
    shares = _normalised(weights)
    if num_rows < 1:
        raise ConfigError(f"num_rows={num_rows}; a mixture has at least one row")
    num_lanes = max(1, min(_NUM_LANES, num_rows // 64))
    borders = np.linspace(0, num_rows, num_lanes + 1).astype(np.int64)
    dataset = np.empty(num_rows, np.uint8)
    begins = np.rint(borders[:-1, None] * shares)  # [lanes, datasets] guessed counts at the beginning of each stretch
    begins[:, 0] += borders[:-1] - begins.sum(1)  # as many rows as came before
    todo = np.arange(num_lanes)
    ends = np.empty_like(begins)
    while len(todo):
        ends[todo] = _walk(dataset, shares, borders[todo], borders[todo + 1], begins[todo])
        wrong = np.flatnonzero((begins[1:] != ends[:-1]).any(1)) + 1
        begins[wrong] = ends[wrong - 1]
        todo = wrong
    sample = np.empty(num_rows, np.int64)
    for number in range(len(shares)):
        chosen = np.flatnonzero(dataset == number)
        sample[chosen] = np.arange(len(chosen))
    return BlendingIndex(dataset=dataset, sample=sample)


def samples_needed(num_rows: int, share: float) -> int:
    """How many samples to ask of a data set with this share of a mixture.

    As many as GPT-NeoX asks, and in a run too short for its half a percent of reserve a few more: there GPT-NeoX begins the data set
    again. The blend takes less than one row above the share, and the last sample is never served.
    """
    return max(neox_num_samples(num_rows, weight=share), math.floor(num_rows * share) + 2)


@dataclass(frozen=True, slots=True, eq=False)
class MixedRows:
    """Rows of several orders, blended."""

    parts: tuple[Rows, ...]
    weights: tuple[float, ...]
    index: BlendingIndex

    @staticmethod
    def of(parts: Sequence[Rows], weights: Sequence[float], num_rows: int) -> MixedRows:
        """Blend `num_rows` rows.

        Raises:
            ConfigError: the numbers of parts and weights differ, a weight is not positive, or sequence lengths differ.
            DatasetError: a part has fewer rows than the blend takes of it (`samples_needed` says how many suffice).
        """
        if len(parts) != len(weights):
            raise ConfigError(f"{len(parts)} data sets and {len(weights)} weights; give one weight each")
        if len(lengths := {part.seq_length for part in parts}) > 1:
            raise ConfigError(f"the data sets have sequence lengths {sorted(lengths)}; a mixture has one")
        index = blending_index(weights, num_rows)
        for number, (part, taken) in enumerate(zip(parts, np.bincount(index.dataset, minlength=len(parts)).tolist(), strict=True)):
            if taken > part.num_rows:
                raise DatasetError(f"data set {number} has {part.num_rows} rows, the mixture takes {taken}; ask for more samples of it")
        return MixedRows(tuple(parts), tuple(float(weight) for weight in weights), index)

    @property
    def seq_length(self) -> int:
        return self.parts[0].seq_length

    @property
    def num_rows(self) -> int:
        return len(self.index.dataset)

    @property
    def fingerprint(self) -> str:
        # The number of rows is left out: more of them continue the same order.
        facts = {
            "order": "gpt-neox blend",
            "parts": [part.fingerprint for part in self.parts],
            "weights": _normalised(self.weights).tolist(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def spans(self, row: int) -> tuple[Span, ...]:
        number, sample = self._source(row)
        return tuple(replace(span, dataset=number) for span in self.parts[number].spans(sample))

    def row(self, row: int) -> NDArray[Any]:
        number, sample = self._source(row)
        return self.parts[number].row(sample)

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]:
        """See `PackedRows.places`."""
        if not 0 <= dataset < len(self.parts):
            raise ConfigError(f"data set {dataset} was asked for; the mixture has data sets 0 to {len(self.parts) - 1}")
        found = []
        for place in self.parts[dataset].places(document, offset):
            row = self._row_of(dataset, place.row)
            if row is not None:
                found.append(Place(row, place.column))
        return tuple(sorted(found))

    def _source(self, row: int) -> tuple[int, int]:
        check_row(row, self.num_rows)
        return int(self.index.dataset[row]), int(self.index.sample[row])

    def _row_of(self, dataset: int, sample: int) -> int | None:
        """Only a stretch around sample / share can hold it, because the greedy rule keeps each count near share * row.

        A data set is chosen only when it is behind or even, so none gets ahead by more than one row; what the others are ahead
        is what one is behind, so that is below their number.
        """
        share = _normalised(self.weights)[dataset]
        slack = len(self.parts) + 1
        start = max(0, int((sample - slack) / share) - 1)
        stop = min(self.num_rows, int((sample + 1 + slack) / share) + 2)
        match = np.flatnonzero((self.index.dataset[start:stop] == dataset) & (self.index.sample[start:stop] == sample))
        return start + int(match[0]) if len(match) else None


def _normalised(weights: Sequence[float]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.array(weights, np.float64)
    if not 1 <= len(shares) <= _MAX_DATASETS or not np.isfinite(shares).all() or shares.min() <= 0:
        raise ConfigError(f"weights={list(weights)}; give 1 to {_MAX_DATASETS} positive numbers")
    shares /= shares.sum()
    return shares


def _walk(
    dataset: NDArray[np.uint8],
    shares: NDArray[np.float64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Fill stretches [start, stop) of `dataset` side by side, from given counts [lanes, datasets]; returns the counts at their ends.

    Lengths of stretches differ by one at most, so in the last round some of them rest.
    """
    counts = counts.copy()
    lanes = np.arange(len(starts))
    for step in range(int((stops - starts).max())):
        if step == int((stops - starts).min()):
            lanes = np.flatnonzero(stops - starts > step)
        rows = starts[lanes] + step
        behind = shares * np.maximum(rows, 1)[:, None] - counts[lanes]
        chosen = behind.argmax(1)  # the first of equals
        dataset[rows] = chosen
        counts[lanes, chosen] += 1
    return counts
