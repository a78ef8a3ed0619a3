"""The table in memory that exact searches look at."""

from __future__ import annotations

import numpy as np

from tripod.retrieval.passage_table import PassageTable


def filled(*sources: int) -> PassageTable:
    """Each source with three passages, whose ids are ten times its own and up."""
    table = PassageTable("f32")
    for source in sources:
        add(table, source)
    return table


def add(table: PassageTable, source: int) -> None:
    ids = range(10 * source, 10 * source + 3)
    table.add(source, f"s{source}", ids, range(3), [np.full(4, i, dtype="<f4").tobytes() for i in ids])


def test_rows_that_went_are_used_again() -> None:
    table = filled(1, 2)
    for source in range(3, 1000):
        table.remove(source - 1)
        add(table, source)
    assert table.num_passages == 6
    assert table.shape[0] <= 64


def test_passages_are_found_by_id_after_others_went_and_came() -> None:
    table = filled(1, 2, 3, 4)
    for change in (lambda: None, lambda: table.remove(1), lambda: table.remove(4), lambda: add(table, 5)):
        change()
        present = np.sort(table.ids[table.present()])
        assert table.ids[table.rows_of(present)].tolist() == present.tolist()
        assert table.cosine(np.ones(4, dtype=np.float32))[table.rows_of(present)].tolist() == (4 * present).tolist()
