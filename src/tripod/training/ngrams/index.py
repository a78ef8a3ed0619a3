"""When and where a run reads a sequence of tokens: its count, documents, steps and offsets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, DatasetError
from tripod.training.data.order import Place
from tripod.training.data.progress import Progress, no_progress
from tripod.training.ngrams.build import FACTS, FORMAT, Facts, build_index
from tripod.training.ngrams.suffix_array import SuffixArray

if TYPE_CHECKING:
    from tripod.training.run import Run

FOLDER = "ngrams"


@dataclass(frozen=True, slots=True)
class Sighting:
    """One time that a sequence was read."""

    step: int  # from 0; checkpoint stepN has seen the steps below N
    place: Place  # of its first token
    document: int | None  # that holds its first token; None where the rows do not say
    dataset: int
    offset: int | None  # of its first token in the document; None where an intervention put other words there


@dataclass(frozen=True, slots=True, eq=False)
class Sightings:
    """Every time that a run reads a sequence whole within a row, in order."""

    index: NGramIndex
    positions: NDArray[np.int64]  # of the first token, counted in the symbols of the index; ascending

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Sighting:
        row, column = divmod(int(self.positions[number]), self.index.row_symbols)
        span = int(np.searchsorted(self.index.spans["begins"], self.positions[number], "right")) - 1
        document, offset = int(self.index.spans["documents"][span]), int(self.index.spans["offsets"][span])
        within = int(self.positions[number]) - int(self.index.spans["begins"][span])
        return Sighting(
            step=row // self.index.facts.batch_size,
            place=Place(row, column),
            document=None if document < 0 else document,
            dataset=int(self.index.spans["datasets"][span]),
            offset=None if offset < 0 else offset + within,
        )

    def __iter__(self) -> Iterator[Sighting]:
        return (self[number] for number in range(len(self)))

    def before(self, step: int) -> Sightings:
        """Those that the checkpoint of a step has seen."""
        return Sightings(self.index, self.positions[: np.searchsorted(self.positions, self.index.symbols_before(step))])

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step of each of them."""
        return self.positions // (self.index.row_symbols * self.index.facts.batch_size)

    @property
    def num_documents(self) -> int:
        """How many documents they stand in; those that the rows do not know are one."""
        spans = np.searchsorted(self.index.spans["begins"], self.positions, "right") - 1
        numbers = self.index.spans["documents"][spans] * 256 + self.index.spans["datasets"][spans]
        return len(np.unique(numbers))


class NGramIndex:
    """Searches all rows of a run at once. A sequence counts where it stands whole within one row."""

    def __init__(self, facts: Facts, segments: Sequence[SuffixArray], spans: dict[str, NDArray[Any]], unigrams: NDArray[np.int64]) -> None:
        self.facts = facts
        self.spans = spans
        self.unigrams = unigrams
        self.row_symbols = facts.seq_length + 2  # with the 0 behind a row
        begins = np.cumsum([0, *facts.segment_rows[:-1]]) * self.row_symbols
        self._segments = list(zip(begins.tolist(), segments, strict=True))

    @staticmethod
    def open(folder: Path) -> NGramIndex:
        """Map an index into memory; a search reads only what it needs.

        Raises:
            DatasetError: there is none, or one of another format.
        """
        try:
            content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{folder} holds no n-gram index ({error}); `tripod provenance --run RUN` makes one") from error
        if content.pop("format", None) != FORMAT:
            raise DatasetError(f"{folder} has another format than {FORMAT}; remove it, and it is made again")
        try:
            facts = Facts(**{**content, "segment_rows": tuple(content["segment_rows"])})
            segments = [
                SuffixArray(*(_load(folder / f"{name}-{number}.npy") for name in ("text", "suffixes", "smallest")))
                for number in range(len(facts.segment_rows))
            ]
            spans = {name: _load(folder / f"span_{name}.npy") for name in ("begins", "documents", "datasets", "offsets")}
            return NGramIndex(facts, segments, spans, _load(folder / "unigrams.npy"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DatasetError(f"the n-gram index {folder} is damaged ({error}); remove it, and it is made again") from error

    @staticmethod
    def of(run: Run, *, progress: Progress = no_progress) -> NGramIndex:
        """The index of all steps of a run's recipe, in the folder of the run; made where it is absent.

        The order of a run is known before it is trained, so one index serves all of its checkpoints; `Sightings.before` and
        `step` of `longest` say what a checkpoint has seen.

        Raises:
            DatasetError: the data of the run cannot be opened.
            MissingExtraError: pydivsufsort is not installed, and the index must be made.
        """
        order = run.order(progress=progress)
        folder = run.folder / FOLDER / f"{order.content_fingerprint[:16]}-{run.recipe.num_steps}"
        if not (folder / FACTS).is_file():
            try:
                build_index(order, run.recipe.num_steps, folder, progress=progress)
            except OSError:
                if not (folder / FACTS).is_file():  # then another process made it meanwhile
                    raise
        return NGramIndex.open(folder)

    def symbols_before(self, step: int) -> int:
        """Symbols of the rows that the checkpoint of a step has seen.

        Raises:
            ConfigError: the run has no such step.
        """
        if not 0 <= step <= self.facts.num_steps:
            raise ConfigError(f"step {step} was asked for; the run has the checkpoints of steps 0 to {self.facts.num_steps}")
        return step * self.facts.batch_size * self.row_symbols

    def find(self, ids: Sequence[int]) -> Sightings:
        """Every time that a sequence is read.

        Raises:
            ConfigError: it is empty.
        """
        return self.find_stretches(ids, [0], [len(ids)])[0]

    def find_stretches(self, ids: Sequence[int], starts: Sequence[int], stops: Sequence[int]) -> list[Sightings]:
        """Every time that stretches [start, stop) of a text are read, for each of them; faster than one after the other.

        Raises:
            ConfigError: one is empty.
        """
        query = _symbols(ids)
        begins, ends = np.array(starts, np.int64), np.array(stops, np.int64)
        if (ends <= begins).any():
            raise ConfigError("an empty sequence stands everywhere; give at least one token id")
        found: list[list[NDArray[np.int64]]] = [[] for _ in starts]
        for begin, segment in self._segments:
            firsts, lasts = segment.bounds(query, begins, ends)
            for places, first, last in zip(found, firsts.tolist(), lasts.tolist(), strict=True):
                places.append(segment.suffixes[first:last].astype(np.int64) + begin)
        return [Sightings(self, np.sort(np.concatenate(places))) for places in found]

    def counts(self, sequences: Sequence[Sequence[int]], *, step: int | None = None) -> NDArray[np.int64]:
        """How often the checkpoint of a step has read each of many sequences: [len(sequences)]. Faster than `find` for each of them.

        Raises:
            ConfigError: one is empty, or the run has no such step.
        """
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        if not len(lengths) or lengths.min() < 1:
            raise ConfigError(f"{len(sequences)} sequences, one of them empty; give at least one, and at least one token id in each")
        query = _symbols(np.concatenate([np.asarray(ids) for ids in sequences]).tolist())
        stops = np.cumsum(lengths)
        limit = self.symbols_before(self.facts.num_steps if step is None else step)
        found = np.zeros(len(lengths), np.int64)
        for begin, segment in self._segments:
            first, last = segment.bounds(query, stops - lengths, stops)
            if limit >= begin + len(segment.text):
                found += last - first
            elif limit > begin:  # the limit lies within
                found += [
                    int(np.count_nonzero(segment.suffixes[low:high] < limit - begin))
                    for low, high in zip(first.tolist(), last.tolist(), strict=True)
                ]
        return found

    def longest(self, ids: Sequence[int], *, step: int | None = None, at_least: int = 1) -> NDArray[np.int64]:
        """How many tokens from each one on were read together: [len(ids)].

        Args:
            ids: of a text.
            step: only what the checkpoint of this step has seen counts; None: all of the run.
            at_least: shorter ones count as 0.
        """
        query = _symbols(ids)
        limit = self.symbols_before(self.facts.num_steps if step is None else step)
        found = np.zeros(len(query), np.int64)
        for begin, segment in self._segments:
            lengths = segment.longest(query)
            lengths[lengths < at_least] = 0
            if limit < begin + len(segment.text):  # not all of the segment was seen
                lengths = _seen(segment, query, lengths, limit - begin, at_least)
            found = np.maximum(found, lengths)
        return found

    def information(self, ids: Sequence[int]) -> float:
        """How rare a sequence would be if its tokens came independently: bits, by their frequencies in the run."""
        counts = np.array([self.unigrams[token] if token < len(self.unigrams) else 0 for token in ids], np.float64)
        with np.errstate(divide="ignore"):
            return float(-np.log2(counts / self.facts.num_tokens).sum())


def _seen(segment: SuffixArray, query: NDArray[np.int64], lengths: NDArray[np.int64], limit: int, at_least: int) -> NDArray[np.int64]:
    """The lengths that occur before a place of the segment; by bisection, for what occurs there does so with every shorter length."""
    starts = np.arange(len(query))
    low, high = np.zeros_like(lengths), lengths.copy()  # low occurs, all above high do not
    tried = high.copy()  # first the whole, which most often is it
    while True:
        (active,) = np.nonzero(low < high)
        if not len(active):
            return low
        firsts, lasts = segment.bounds(query, starts[active], starts[active] + tried[active])
        for number, first, last in zip(active.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
            place = segment.first(first, last)
            if place is not None and place < limit:
                low[number] = tried[number]
            else:
                high[number] = tried[number] - 1
        high[high < at_least] = 0
        low = np.minimum(low, high)
        tried = np.maximum((low + high + 1) // 2, np.minimum(at_least, high))


def _symbols(ids: Sequence[int]) -> NDArray[np.int64]:
    symbols: NDArray[np.int64] = np.array(ids, np.int64) + 1
    if len(symbols) and int(symbols.min()) < 1:
        raise ConfigError(f"token id {int(symbols.min()) - 1} was given; ids count from 0")
    return symbols


def _load(file: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(file, mmap_mode="r").view(np.ndarray)
    return array
