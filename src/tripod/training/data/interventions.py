"""Rows that an intervention changed from a step on: other words in them, other rows, other texts, another order.

Each is a layer over rows, and a pure function of them: any row of any step is read back alone, and rows outside of the steps of an
intervention are those of the control, token for token. A row keeps its length and, but for `reorder`, its place.

    swap      words are exchanged; a row that became longer is cut at its end, one that became shorter is filled with ends of documents
    filter    a row whose text matches gives its place to one that does not: rows that the run never reads first, then those from
              outside of the steps, each taken in turn
    inject    a text and an end of document stand at the beginning of some rows of each step, in the place of what stood there
    reorder   rows are shuffled among the steps, or reversed
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.errors import ConfigError
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.build import end_of_document
from tripod.training.data.order import Place, Rows, Span, check_row
from tripod.training.data.word_swap import WordSwap


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row as an intervention left it."""

    tokens: NDArray[Any]  # [seq_length + 1]
    spans: tuple[Span, ...]
    kept: tuple[tuple[int, int, int], ...]  # (column before, column now, how many): tokens that are the row's own, in order
    counts: Mapping[str, int]  # what was done, such as {"he -> she": 2, "tokens cut": 1}; nothing: the row is as it was

    @property
    def is_changed(self) -> bool:
        return bool(self.counts)

    @property
    def num_changed(self) -> int:
        """Tokens of the row that were not in it before."""
        return len(self.tokens) - sum(count for _, _, count in self.kept)


@dataclass(slots=True, eq=False)
class ChangedRows:
    """Rows of which those in `affected` are changed by `change`. The base of all interventions."""

    inner: Rows
    affected: range
    facts: Mapping[str, Any]  # of what the change depends on, for the fingerprint

    @property
    def seq_length(self) -> int:
        return self.inner.seq_length

    @property
    def num_rows(self) -> int:
        return self.inner.num_rows

    @property
    def fingerprint(self) -> str:
        facts = {
            "order": "intervention",
            "of": self.inner.fingerprint,
            "rows": [self.affected.start, self.affected.stop],
            **self.facts,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def spans(self, row: int) -> tuple[Span, ...]:
        return self.change(row).spans if row in self.affected else self.inner.spans(row)

    def row(self, row: int) -> NDArray[Any]:
        return self.change(row).tokens if row in self.affected else self.inner.row(row)

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]:
        """Where a token is still read; see `PackedRows.places`."""
        found = []
        for place in self.inner.places(document, offset, dataset=dataset):
            if place.row not in self.affected:
                found.append(place)
                continue
            for before, now, count in self.change(place.row).kept:
                if before <= place.column < before + count:
                    found.append(Place(place.row, place.column - before + now))
        return tuple(sorted(found))

    def change(self, row: int) -> RowChange:
        """What became of a row.

        Raises:
            ConfigError: there is no such row.
        """
        check_row(row, self.num_rows)
        return self._unchanged(row)

    def _unchanged(self, row: int) -> RowChange:
        tokens = self.inner.row(row)
        return RowChange(tokens, self.inner.spans(row), ((0, 0, len(tokens)),), {})


@dataclass(slots=True, eq=False)
class SwappedRows(ChangedRows):
    """Rows in which words are exchanged."""

    swap: WordSwap
    eod: int

    def change(self, row: int) -> RowChange:
        before = ChangedRows.change(self, row)
        length = len(before.tokens)
        splices = self.swap.splices(before.tokens.tolist())
        if not splices:
            return before
        counts: Counter[str] = Counter()
        pieces: list[NDArray[Any]] = []
        kept: list[tuple[int, int, int]] = []
        read = written = 0
        for splice in splices:
            pieces += [before.tokens[read : splice.start], np.array(splice.ids, before.tokens.dtype)]
            kept.append((read, written, splice.start - read))
            written += splice.start - read + len(splice.ids)
            read = splice.stop
            counts.update(f"{old.lower()} -> {new.lower()}" for old, new in splice.words)
        pieces.append(before.tokens[read:])
        kept.append((read, written, length - read))
        written += length - read
        spans = [_moved(span, splices) for span in before.spans]
        if written > length:
            counts["tokens cut"] = written - length
            spans = [replace(span, width=min(span.num_tokens, length - span.column)) for span in spans if span.column < length]
        elif written < length:
            counts["tokens filled"] = length - written
            pieces.append(np.full(length - written, self.eod, before.tokens.dtype))
            spans.append(Span(None, 0, length - written, written, change="filled"))
        kept = [(old, new, min(count, length - new)) for old, new, count in kept if count > 0 and new < length]
        return RowChange(np.concatenate(pieces)[:length], tuple(spans), tuple(kept), counts)


@dataclass(slots=True, eq=False)
class FilteredRows(ChangedRows):
    """Rows without those whose text matches a pattern."""

    pattern: re.Pattern[str]
    tokenizer: Tokenizer
    num_read: int  # rows that the run reads; those behind them stand in first

    def change(self, row: int) -> RowChange:
        before = ChangedRows.change(self, row)
        if not self._matches(row):
            return before
        other = self.substitute(row)
        stands_in = f"row {other} in the place of {row}, which was filtered"
        spans = tuple(replace(span, change=stands_in) for span in self.inner.spans(other))
        return RowChange(self.inner.row(other), spans, (), {"rows filtered": 1})

    def substitute(self, row: int) -> int:
        """The row that stands in for a filtered one.

        Raises:
            ConfigError: the pattern matches every row that could stand in.
        """
        size = self.num_rows - len(self.affected)
        for step in range(size):
            candidate = self._candidate((row - self.affected.start + step) % size)
            if not self._matches(candidate):
                return candidate
        raise ConfigError(f"filter {self.pattern.pattern!r} matches every row outside of those that it filters; none can stand in")

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]:
        found = list(ChangedRows.places(self, document, offset, dataset=dataset))
        size = self.num_rows - len(self.affected)
        for place in self.inner.places(document, offset, dataset=dataset):
            if place.row not in self.affected and not self._matches(place.row):
                found += [Place(row, place.column) for row in self._stands_in_for(place.row, size)]
        return tuple(sorted(found))

    def _candidate(self, number: int) -> int:
        num_unread = self.num_rows - self.num_read
        if number < num_unread:
            return self.num_read + number
        number -= num_unread
        return number if number < self.affected.start else number - self.affected.start + self.affected.stop

    def _stands_in_for(self, candidate: int, size: int) -> list[int]:
        """The filtered rows whose turn comes to this row: its own turns, and those of matching rows right before it."""
        num_unread = self.num_rows - self.num_read
        if candidate >= self.num_read:
            number = candidate - self.num_read
        else:
            number = num_unread + (candidate if candidate < self.affected.start else candidate - len(self.affected))
        turns = [number]
        while len(turns) < size and self._matches(self._candidate((turns[-1] - 1) % size)):
            turns.append((turns[-1] - 1) % size)
        rows = [row for turn in turns for row in range(self.affected.start + turn, self.affected.stop, size)]
        return [row for row in rows if self._matches(row)]

    def _matches(self, row: int) -> bool:
        tokens = self.inner.row(row).tolist()
        return any(self.pattern.search(text) for text in _texts(tokens, self.tokenizer))


@dataclass(slots=True, eq=False)
class InjectedRows(ChangedRows):
    """Rows of which some of each step begin with a given text."""

    texts: Sequence[Sequence[int]]  # ids, the end of document included
    rows_per_step: int
    batch_size: int
    seed: int

    def change(self, row: int) -> RowChange:
        before = ChangedRows.change(self, row)
        step, place = divmod(row, self.batch_size)
        chosen = stream(f"inject {self.seed} {step}").permutation(self.batch_size)[: self.rows_per_step].tolist()
        if place not in chosen:
            return before
        number = (step * self.rows_per_step + chosen.index(place)) % len(self.texts)
        ids = self.texts[number]
        tokens = before.tokens.copy()
        tokens[: len(ids)] = ids
        spans = [Span(None, 0, len(ids), 0, change=f"injected text {number}")]
        spans += [_cut_before(span, len(ids)) for span in before.spans if span.column + span.num_tokens > len(ids)]
        kept = ((len(ids), len(ids), len(tokens) - len(ids)),)
        return RowChange(tokens, tuple(spans), kept, {"rows injected": 1})


@dataclass(slots=True, eq=False)
class ReorderedRows(ChangedRows):
    """Rows in another order within the steps."""

    permutation: NDArray[np.int64] = field(repr=False)  # [rows] which row, counted from the first, stands at each place
    _inverse: NDArray[np.int64] | None = field(default=None, init=False, repr=False)

    def change(self, row: int) -> RowChange:
        check_row(row, self.num_rows)
        source = self.affected.start + int(self.permutation[row - self.affected.start])
        if source == row:
            return self._unchanged(row)
        spans = tuple(replace(span, change=f"row {source} before reordering") for span in self.inner.spans(source))
        return RowChange(self.inner.row(source), spans, (), {"rows moved": 1})

    def places(self, document: int, offset: int, *, dataset: int = 0) -> tuple[Place, ...]:
        if self._inverse is None:
            self._inverse = np.argsort(self.permutation)
        first = self.affected.start
        places = self.inner.places(document, offset, dataset=dataset)
        moved = [
            replace(place, row=first + int(self._inverse[place.row - first])) if place.row in self.affected else place for place in places
        ]
        return tuple(sorted(moved))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeReport:
    """How much an intervention changed, over all of its rows or over evenly spaced ones."""

    kind: str
    num_rows: int  # in its steps
    num_seen: int  # of them, looked at
    num_rows_changed: int  # of those looked at
    num_tokens: int  # in the rows looked at
    num_tokens_changed: int  # that were not in the row before
    counts: Mapping[str, int]  # what was done, most frequent first

    @property
    def share_of_rows(self) -> float:
        return self.num_rows_changed / max(1, self.num_seen)

    @property
    def share_of_tokens(self) -> float:
        return self.num_tokens_changed / max(1, self.num_tokens)

    def __str__(self) -> str:
        seen = "" if self.num_seen == self.num_rows else f" (of {self.num_seen:,} looked at)"
        done = ", ".join(f"{what}: {count:,}" for what, count in list(self.counts.items())[:12])
        return (
            f"{self.kind}: {self.num_rows:,} rows, {self.share_of_rows:.2%} changed{seen}, {self.share_of_tokens:.3%} of their tokens"
            + (f"; {done}" if done else "")
        )


def change_report(rows: ChangedRows, *, max_rows: int = 65_536) -> ChangeReport:
    """Count what an intervention changes, in all of its rows or in so many, evenly spaced."""
    stride = max(1, -(-len(rows.affected) // max_rows))
    num_seen = num_rows_changed = num_tokens = num_tokens_changed = 0
    counts: Counter[str] = Counter()
    for row in rows.affected[::stride]:
        change = rows.change(row)
        num_seen += 1
        num_tokens += len(change.tokens)
        num_rows_changed += change.is_changed
        num_tokens_changed += change.num_changed
        counts.update(change.counts)
    return ChangeReport(
        kind=str(rows.facts["kind"]),
        num_rows=len(rows.affected),
        num_seen=num_seen,
        num_rows_changed=num_rows_changed,
        num_tokens=num_tokens,
        num_tokens_changed=num_tokens_changed,
        counts=dict(counts.most_common()),
    )


def injected_ids(texts: Sequence[str], tokenizer: Tokenizer, seq_length: int) -> list[list[int]]:
    """The tokens of texts to inject, each with an end of document.

    Raises:
        ConfigError: one is longer than a row, or the tokenizer has no end of document.
    """
    eod = end_of_document(tokenizer)
    ids = [[*tokenizer.encode(text, add_special_tokens=False), eod] for text in texts]
    for number, one in enumerate(ids):
        if len(one) > seq_length + 1:
            raise ConfigError(f"text {number} to inject has {len(one)} tokens, a row {seq_length + 1}; shorten it, or give it in parts")
    return ids


def shuffled(num_rows: int, seed: int) -> NDArray[np.int64]:
    """[num_rows] a permutation; NumPy promises that this stream stays as it is."""
    return stream(f"reorder {seed}").permutation(num_rows).astype(np.int64)


def stream(name: str) -> np.random.RandomState:
    """Random numbers that are a function of a name; NumPy promises that they stay what they are."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))


def _texts(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The texts between special tokens."""
    texts: list[bytes] = [b""]
    for token in tokens:
        if token in tokenizer.special_ids:
            texts.append(b"")
        else:
            texts[-1] += tokenizer.token_bytes(token)
    return [text.decode("utf-8", "replace") for text in texts if text]


def _moved(span: Span, splices: Sequence[Any]) -> Span:
    """A span whose tokens were exchanged within it and before it."""
    end = span.column + span.num_tokens
    shift = sum(len(one.ids) - (one.stop - one.start) for one in splices if one.stop <= span.column)
    inside = [one for one in splices if span.column <= one.start < end]
    if not inside:
        return replace(span, column=span.column + shift)
    growth = sum(len(one.ids) - (one.stop - one.start) for one in inside)
    words = sum(len(one.words) for one in inside)
    change = f"{words} word{'s' if words > 1 else ''} swapped"
    return replace(span, column=span.column + shift, width=span.num_tokens + growth, change=change)


def _cut_before(span: Span, column: int) -> Span:
    """A span without what stands left of a column."""
    gone = max(0, column - span.column)
    if span.width is not None:  # its tokens do not count the document's any more
        return replace(span, column=span.column + gone, width=span.width - gone)
    return replace(span, start=span.start + gone, column=span.column + gone)
