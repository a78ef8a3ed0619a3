"""An n-gram index on disk: the rows of a run in the order of their training, and the sorted suffixes of them.

    facts.json            what was indexed, see `Facts`
    text-K.npy            rows of segment K, one after the other: token ids + 1, and a 0 behind each row, so nothing is found across rows
    suffixes-K.npy        see `suffix_array`
    smallest-K.npy
    unigrams.npy          [vocabulary] how often the rows hold each token
    span_begins.npy       [spans] where each stretch of one document begins in the rows, counted in symbols over all segments
    span_documents.npy    [spans] its number; -1 where the rows do not know it
    span_datasets.npy     [spans]
    span_offsets.npy      [spans] the token of the document that stands there; -1 where an intervention put others

Rows lie in the order in which they are read, so a place in the text is a time: what stands before one was read before it.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripod.durable_files import durable_folder, sync_folder
from tripod.errors import ConfigError
from tripod.training.data.order import DataOrder, Span
from tripod.training.data.progress import Progress, no_progress
from tripod.training.ngrams.suffix_array import smallest_of_blocks, sort_suffixes, symbol_width

FORMAT = 2
FACTS = "facts.json"
SEGMENT_BYTES = 1 << 28  # of the text as it is sorted, which takes five times as much memory
_PROGRESS_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an index was made of."""

    fingerprint: str  # of the order with its rows, see `DataOrder.content_fingerprint`
    num_steps: int
    batch_size: int
    seq_length: int
    segment_rows: tuple[int, ...]  # of each segment
    num_tokens: int  # of all rows, each with its seq_length + 1
    vocab_size: int  # the largest token id + 1


def build_index(
    order: DataOrder, num_steps: int, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, progress: Progress = no_progress
) -> Facts:
    """Index the rows of the first steps of an order. The folder appears when it is whole.

    Args:
        order: of the run.
        num_steps: of the run.
        folder: to make.
        segment_bytes: bounds the memory, and the number of suffix arrays that a search looks into.

    Raises:
        ConfigError: the order has fewer steps, or a row does not fit into a segment.
        MissingExtraError: pydivsufsort is not installed.
    """
    if not 1 <= num_steps <= order.num_steps:
        raise ConfigError(f"num_steps={num_steps} of an order of {order.num_steps} steps; index between 1 and all of them")
    num_rows, length = num_steps * order.batch_size, order.rows.seq_length + 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    with durable_folder(folder) as partial:
        tokens, spans = _read_rows(order, num_rows, partial / "rows.partial", progress)
        unigrams = _unigrams(tokens)
        width = symbol_width(len(unigrams))  # of token ids + 1
        rows_each = segment_bytes // (width * (length + 1))
        if rows_each < 1 or segment_bytes >= 2**31:
            raise ConfigError(f"segment_bytes={segment_bytes}; a segment holds at least a row ({width * (length + 1)} bytes), below 2**31")
        segment_rows = []
        for number, start in enumerate(range(0, num_rows, rows_each)):
            stop = min(start + rows_each, num_rows)
            progress("sort suffixes", stop, num_rows)
            _write_segment(partial, number, tokens[start:stop], width)
            segment_rows.append(stop - start)
        np.save(partial / "unigrams.npy", unigrams)
        for name, values in spans.items():
            np.save(partial / f"span_{name}.npy", values)
        del tokens
        (partial / "rows.partial").unlink()
        facts = Facts(
            fingerprint=order.content_fingerprint,
            num_steps=num_steps,
            batch_size=order.batch_size,
            seq_length=order.rows.seq_length,
            segment_rows=tuple(segment_rows),
            num_tokens=num_rows * length,
            vocab_size=len(unigrams),
        )
        (partial / FACTS).write_text(json.dumps({"format": FORMAT, **asdict(facts)}, indent=1) + "\n", encoding="utf-8")
        for file in partial.iterdir():
            sync_folder(file)  # flushes a file as well
    return facts


def _read_rows(order: DataOrder, num_rows: int, file: Path, progress: Progress) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """All rows, [num_rows, seq_length + 1], on disk; and their spans."""
    length = order.rows.seq_length + 1
    first = order.rows.row(0)
    tokens: NDArray[Any] = np.memmap(file, first.dtype, mode="w+", shape=(num_rows, length))
    begins, documents, datasets, offsets = array("q"), array("q"), array("B"), array("q")
    for row in range(num_rows):
        tokens[row] = order.rows.row(row)
        for span in order.rows.spans(row):
            begins.append(row * (length + 1) + span.column)
            documents.append(-1 if span.document is None else span.document)
            datasets.append(span.dataset)
            offsets.append(_offset(span))
        if row % _PROGRESS_ROWS == _PROGRESS_ROWS - 1 or row == num_rows - 1:
            progress("read rows", row + 1, num_rows)
    columns = {"begins": begins, "documents": documents, "datasets": datasets, "offsets": offsets}
    return tokens, {name: np.array(values) for name, values in columns.items()}


def _offset(span: Span) -> int:
    """The first token of the span in its document, where all its tokens are the document's."""
    return span.start if span.document is not None and span.width is None else -1


def _unigrams(tokens: NDArray[Any]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.zeros(0, np.int64)
    for start in range(0, len(tokens), _PROGRESS_ROWS):
        found = np.bincount(tokens[start : start + _PROGRESS_ROWS].ravel(), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def _write_segment(folder: Path, number: int, tokens: NDArray[Any], width: int) -> None:
    text = np.zeros((len(tokens), tokens.shape[1] + 1), f"<u{1 << (width - 1).bit_length()}")
    np.add(tokens, 1, out=text[:, :-1], casting="unsafe", dtype=np.int64)
    flat = text.ravel()
    suffixes = sort_suffixes(flat, width)
    np.save(folder / f"text-{number}.npy", flat)
    np.save(folder / f"suffixes-{number}.npy", suffixes)
    np.save(folder / f"smallest-{number}.npy", smallest_of_blocks(suffixes))
