"""A batch as text: what the rows of a step hold, with the borders of their documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tripod.text.tokenizer import Tokenizer
from tripod.training.data.document_table import DocumentRecord, DocumentTable
from tripod.training.data.order import DataOrder, Span


@dataclass(frozen=True, slots=True)
class SpanView:
    """A stretch of one document within a row. A character cut by the edge of the stretch shows as U+FFFD."""

    span: Span
    text: str
    record: DocumentRecord | None  # None without a side table

    @property
    def title(self) -> str:
        """Which document and which of its tokens; its source and labels where they are known."""
        span = self.span
        if span.document is None and span.change is not None:
            return span.change
        name = "unknown document" if span.document is None else f"document {span.document}"
        if span.dataset:
            name = f"data set {span.dataset}, {name}"
        title = f"{name}, tokens {span.start} to {span.stop - 1}"
        if self.record is not None:
            title += f", {self.record.source}" + (f":{self.record.line}" if self.record.line is not None else "")
            if self.record.labels:
                title += " " + json.dumps(self.record.labels, ensure_ascii=False)
        if span.change is not None:
            title += f" ({span.change})"
        return title


@dataclass(frozen=True, slots=True)
class RowView:
    row: int
    spans: tuple[SpanView, ...]


@dataclass(frozen=True, slots=True)
class BatchView:
    """The rows of one step, or some of them, as text."""

    step: int
    rows: tuple[RowView, ...]

    def render(self, *, max_chars: int | None = None) -> str:
        """Plain text to read. `max_chars` shortens each stretch in its middle, saying by how much."""
        lines = [f"step {self.step}"]
        for row in self.rows:
            lines.append(f"=== row {row.row}")
            for view in row.spans:
                lines += [f"--- {view.title}", _shortened(view.text, max_chars)]
        return "\n".join(lines) + "\n"


def view_batch(
    order: DataOrder,
    step: int,
    tokenizer: Tokenizer,
    *,
    part: slice = slice(None),
    tables: Sequence[DocumentTable] = (),
    eod: int | None = None,
) -> BatchView:
    """Show what a step trains on.

    Args:
        order: of the run.
        step: from 0.
        tokenizer: of the data.
        part: of the step's rows.
        tables: the side tables of the order's data sets, in their order, where there are any.
        eod: the end-of-document token, by which rows that do not know their documents are cut.

    Raises:
        ConfigError: the order has no such step.
    """
    rows = []
    for row in order.rows_of_step(step)[part]:
        tokens = order.rows.row(row)
        views = []
        for span in order.rows.spans(row):
            ids = tokens[span.column : span.column + span.num_tokens]
            record = tables[span.dataset][span.document] if span.document is not None and span.dataset < len(tables) else None
            for piece, piece_ids in _cut(span, ids, eod) if span.document is None else [(span, ids)]:
                views.append(SpanView(piece, tokenizer.decode(piece_ids.tolist()), record))
        rows.append(RowView(row, tuple(views)))
    return BatchView(step, tuple(rows))


def _cut(span: Span, ids: NDArray[np.integer], eod: int | None) -> Iterator[tuple[Span, NDArray[np.integer]]]:
    """Behind each end-of-document token; without any, the whole."""
    ends = [] if eod is None else (np.flatnonzero(ids == eod) + 1).tolist()
    borders = sorted({0, *ends, len(ids)})
    for start, stop in pairwise(borders):
        yield replace(span, start=span.start + start, stop=span.start + stop, column=span.column + start), ids[start:stop]


def _shortened(text: str, max_chars: int | None) -> str:
    if max_chars is None or len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[len(text) - half :]}"
