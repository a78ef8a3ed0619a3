"""The order of training data as a pure function: step -> rows -> (document, offset), and back.

A row is what one sequence of a batch reads: `seq_length` inputs and, one further, `seq_length` targets, so `seq_length` + 1 tokens.
Step s, counted from 0, trains rows [s * batch_size, (s + 1) * batch_size), however many devices share the work; a checkpoint of
step N has seen the rows below N * batch_size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError, DatasetError
from tripod.training.data.index_maps import IndexMaps
from tripod.training.data.indexed_dataset import IndexedDataset
from tripod.training.data.reverse_maps import ReverseMaps, build_reverse_maps, open_reverse_maps

_NUM_HASHED = 64  # rows


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) of one document, standing in a row from `column` on."""

    document: int | None  # its number in the data set; None where the rows do not say (pre-shuffled data)
    start: int
    stop: int
    column: int
    dataset: int = 0  # which one of a mixture
    width: int | None = None  # tokens in the row, where an intervention left others than [start, stop)
    change: str | None = None  # what an intervention did here

    @property
    def num_tokens(self) -> int:
        """In the row."""
        return self.stop - self.start if self.width is None else self.width


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a token stands in a run. Column 0 is input only, the last column target only, those between are both."""

    row: int
    column: int


class Rows(Protocol):
    """All rows of a run, in order. Implemented by packed documents, by mixtures of those, and by pre-shuffled files."""

    @property
    def seq_length(self) -> int: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...  # equal for equal orders

    def spans(self, row: int) -> tuple[Span, ...]: ...  # the documents of a row, left to right; none of them empty

    def row(self, row: int) -> NDArray[Any]: ...  # [seq_length + 1] token ids

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]: ...  # where one token is read, in order


class IndexArray(Protocol):
    """An array that may lie elsewhere: a number or a slice of it is fetched when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


class TokenStore(Protocol):
    """Documents of tokens, here or elsewhere."""

    def __len__(self) -> int: ...

    def size(self, sequence: int, /) -> int: ...

    def tokens(self, sequence: int, start: int = 0, stop: int | None = None, /) -> NDArray[Any]: ...


class PackedOrder(Protocol):
    """What of `IndexMaps` it takes to read rows forwards."""

    @property
    def seq_length(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def doc_idx(self) -> IndexArray: ...

    @property
    def sample_idx(self) -> IndexArray: ...

    @property
    def shuffle_idx(self) -> IndexArray: ...


@dataclass(slots=True, eq=False)
class PackedRows:
    """Documents laid end to end and cut into rows by GPT-NeoX's index maps.

    The last shuffled sample is never a row, as in GPT-NeoX, whose data set is one shorter than its maps.
    """

    store: TokenStore
    maps: PackedOrder
    reverse_folder: Path | None = None  # where the inverse maps are kept; None: in memory, made when first needed
    _reverse: ReverseMaps | None = field(default=None, init=False)

    @property
    def seq_length(self) -> int:
        return self.maps.seq_length

    @property
    def num_rows(self) -> int:
        return len(self.maps.shuffle_idx) - 1

    @property
    def fingerprint(self) -> str:
        return self.maps.fingerprint

    def spans(self, row: int) -> tuple[Span, ...]:
        check_row(row, self.num_rows)
        sample = int(self.maps.shuffle_idx[row])
        (first, offset), (last, end) = self.maps.sample_idx[sample : sample + 2].tolist()
        spans = []
        column, start = 0, offset
        for position, document in enumerate(self.maps.doc_idx[first : last + 1].tolist(), first):
            stop = end + 1 if position == last else self.store.size(document)
            if stop > start:
                spans.append(Span(document, start, stop, column))
            column += stop - start
            start = 0
        if column != self.seq_length + 1:
            raise DatasetError(
                f"row {row} has {column} tokens, expected {self.seq_length + 1}: the index maps were made from other data; build them again"
            )
        return tuple(spans)

    def row(self, row: int) -> NDArray[Any]:
        return np.concatenate([self.store.tokens(_number(span), span.start, span.stop) for span in self.spans(row)])

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]:
        """Every place of the run at which one token of a document is read.

        Once an epoch, and twice where it is both the last token of one row and the first of another.

        Raises:
            ConfigError: there is no such document or token, the document is not in this part of the data, or the maps lie elsewhere.
        """
        if not isinstance(self.store, IndexedDataset) or not isinstance(self.maps, IndexMaps):
            raise ConfigError("places are found in local data only; build or fetch the data set and its index maps")
        if dataset != 0 or not 0 <= document < len(self.store) or not 0 <= offset < self.store.size(document):
            raise ConfigError(f"token {offset} of document {document} of data set {dataset} was asked for; {self.store.prefix} has none")
        if self._reverse is None:
            sizes = np.array(self.store.sizes)
            folder = self.reverse_folder
            self._reverse = build_reverse_maps(self.maps, sizes) if folder is None else open_reverse_maps(folder, self.maps, sizes)
        reverse, maps = self._reverse, self.maps
        num_documents = len(maps.doc_idx) // maps.num_epochs
        if not reverse.first_document <= document < reverse.first_document + num_documents:
            raise ConfigError(
                f"document {document} is not in this part of the data, which has documents {reverse.first_document} to "
                f"{reverse.first_document + num_documents - 1}"
            )
        found = []
        for position in reverse.positions_of(document):
            token = reverse.begin_of(position, maps, self.store.sizes) + offset
            sample, column = divmod(token, self.seq_length)
            if sample < maps.num_samples:
                found.append(Place(int(reverse.rows[sample]), column))
            if column == 0 and 0 < sample <= maps.num_samples:
                found.append(Place(int(reverse.rows[sample - 1]), self.seq_length))
        return tuple(sorted(place for place in found if place.row < self.num_rows))


@dataclass(frozen=True, slots=True)
class DataOrder:
    """Steps over rows. Any batch of any step is read alone; nothing is remembered between them."""

    rows: Rows
    batch_size: int  # rows a step

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}; a step trains at least one row")

    @property
    def num_steps(self) -> int:
        """Whole steps that the rows suffice for."""
        return self.rows.num_rows // self.batch_size

    @property
    def fingerprint(self) -> str:
        """Of the order of rows. The batch size only says how many of them a step takes, so it is not part of it."""
        return self.rows.fingerprint

    @property
    def content_fingerprint(self) -> str:
        """Of the order and of what a few dozen rows hold: for what is kept of tokens. The order of packed rows depends on the sizes of
        documents alone, which other documents may share."""
        return hashlib.sha256(f"{self.fingerprint} {rows_hash(self.rows)}".encode()).hexdigest()

    def rows_of_step(self, step: int) -> range:
        """The rows that a step trains.

        Raises:
            ConfigError: the step is negative or beyond the last whole one.
        """
        if not 0 <= step < self.num_steps:
            raise ConfigError(
                f"step {step} was asked for; {self.rows.num_rows} rows make steps 0 to {self.num_steps - 1} of {self.batch_size} rows"
            )
        return range(step * self.batch_size, (step + 1) * self.batch_size)

    def step_of_row(self, row: int) -> int:
        return row // self.batch_size

    def batch_at(self, step: int, part: slice = slice(None)) -> NDArray[Any]:
        """The token ids of a step, or of a part of its rows: [batch_size, seq_length + 1], in the data's own dtype.

        Inputs are [:, :-1], targets [:, 1:]. Device r of R reads the part slice(r * batch_size // R, (r + 1) * batch_size // R).
        """
        return np.stack([self.rows.row(row) for row in self.rows_of_step(step)[part]])

    def steps_of(self, document: int, offset: int, *, dataset: int = 0) -> tuple[tuple[int, Place], ...]:
        """When a token of a document is read: (step, place), in order; places in rows behind the last whole step are left out."""
        places = self.rows.places(document, offset, dataset=dataset)
        return tuple((step, place) for place in places if (step := self.step_of_row(place.row)) < self.num_steps)


def rows_hash(rows: Rows) -> str:
    """SHA-256 of the tokens of a few dozen rows, spread over all of them."""
    digest = hashlib.sha256()
    for row in np.unique(np.linspace(0, rows.num_rows - 1, _NUM_HASHED).astype(np.int64)).tolist():
        digest.update(rows.row(row).astype("<i4").tobytes())
    return digest.hexdigest()


def check_row(row: int, num_rows: int) -> None:
    if not 0 <= row < num_rows:
        raise ConfigError(f"row {row} was asked for; the order has rows 0 to {num_rows - 1}; ask for more samples when the maps are built")


def check_fingerprint(saved: str, current: str) -> None:
    """Refuse to continue a run on another order than it began with.

    Raises:
        ConfigError: the fingerprints differ.
    """
    if saved != current:
        raise ConfigError(
            f"the checkpoint was trained on the data order {saved[:16]}, the run would go on with {current[:16]}; "
            "give the same data, sequence length, seed and number of samples, or begin a new run"
        )


def _number(span: Span) -> int:
    assert span.document is not None
    return span.document
