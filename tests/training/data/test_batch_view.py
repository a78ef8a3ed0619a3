"""A batch as text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tripod.text.byte_level import write_byte_tokenizer
from tripod.text.load_tokenizer import load_tokenizer
from tripod.text.tokenizer import Tokenizer
from tripod.training.data.batch_view import view_batch
from tripod.training.data.build import build_dataset
from tripod.training.data.document_table import DocumentTable
from tripod.training.data.open_order import open_order
from tripod.training.data.order import DataOrder
from tripod.training.data.rows import PreshuffledRows, write_rows

TEXTS = [f"<{i}>" + "äbc" * (i % 5 + 1) for i in range(12)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_byte_tokenizer(tmp_path / "tok")
    return load_tokenizer(tmp_path / "tok")


@pytest.fixture
def order(tokenizer: Tokenizer, tmp_path: Path) -> DataOrder:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text, "set": "odd" if i % 2 else "even"}) + "\n" for i, text in enumerate(TEXTS)))
    build_dataset([source], tmp_path / "tok", tmp_path / "out", append_eod=True)
    return open_order([tmp_path / "out"], seq_length=20, batch_size=3, num_steps=3, seed=1)


def test_each_stretch_is_the_text_of_its_document_under_its_source_and_labels(
    order: DataOrder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    view = view_batch(order, 1, tokenizer, tables=[DocumentTable.open(tmp_path / "out")])
    assert [row.row for row in view.rows] == [3, 4, 5]
    for row in view.rows:
        assert sum(piece.span.stop - piece.span.start for piece in row.spans) == 21
        for piece in row.spans:
            encoded = TEXTS[piece.span.document].encode()
            assert piece.text == encoded[piece.span.start : piece.span.stop].decode("utf-8", "replace")
            assert piece.record.line == piece.span.document + 1
            assert piece.record.labels == {"set": "odd" if piece.span.document % 2 else "even"}


def test_the_rendered_page_shows_borders_and_shortens_on_request(order: DataOrder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    view = view_batch(order, 0, tokenizer, part=slice(1), tables=[DocumentTable.open(tmp_path / "out")])
    [row] = view.rows
    first = row.spans[0]
    page = view.render(max_chars=4)
    span = first.span
    title = f"--- document {span.document}, tokens {span.start} to {span.stop - 1}, a.jsonl:{span.document + 1} "
    assert page.startswith(f"step 0\n=== row 0\n{title}")
    assert page.count("---") == len(row.spans)
    long = next(piece.text for piece in row.spans if len(piece.text) > 4)
    assert f"{long[:2]} [... {len(long) - 4} characters ...] {long[-2:]}" in page


def test_pre_shuffled_rows_are_cut_behind_the_end_of_document_tokens(order: DataOrder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_rows(order.rows, 9, tmp_path / "rows", np.dtype("<u2"))
    flat = DataOrder(PreshuffledRows.open(tmp_path / "rows"), batch_size=3)
    known, unknown = view_batch(order, 2, tokenizer), view_batch(flat, 2, tokenizer, eod=256)
    assert [[piece.text for piece in row.spans] for row in unknown.rows] == [[piece.text for piece in row.spans] for row in known.rows]
    assert unknown.rows[0].spans[0].title.startswith("unknown document")
    assert [len(row.spans) for row in view_batch(flat, 2, tokenizer).rows] == [1, 1, 1]  # nothing to cut at
