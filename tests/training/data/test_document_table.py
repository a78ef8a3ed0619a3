"""The side table of sources and labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.conftest import WriteDocuments
from tripod.errors import DatasetError
from tripod.training.data.document_table import DocumentRecord, DocumentTable, DocumentTableWriter, table_paths
from tripod.training.data.indexed_dataset_writer import merge

RECORDS = st.lists(
    st.builds(
        DocumentRecord,
        source=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        line=st.none() | st.integers(1, 10**9),
        labels=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.lists(st.booleans(), max_size=2), max_size=2),
    ),
    max_size=6,
)


def write(prefix: Path, records: list[DocumentRecord]) -> Path:
    with DocumentTableWriter(prefix) as writer:
        for record in records:
            writer.add(record)
    return prefix


@given(records=RECORDS)
@settings(max_examples=50, deadline=None)
def test_every_record_is_found_by_its_number(tmp_path_factory: pytest.TempPathFactory, records: list[DocumentRecord]) -> None:
    table = DocumentTable.open(write(tmp_path_factory.mktemp("table") / "x", records))
    assert [table[i] for i in reversed(range(len(table)))] == records[::-1]


def test_merged_data_sets_keep_their_side_tables(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    a, b = [DocumentRecord(source="ä.md"), DocumentRecord(source="b")], [DocumentRecord(source="c", line=3, labels={"x": [1]})]
    for name, records in (("a", a), ("b", b)):
        write_numbered([2] * len(records), tmp_path / name)
        write(tmp_path / name, records)
    merge([tmp_path / "b", tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert list(DocumentTable.open(tmp_path / "out")) == b + a + b


def test_a_merge_does_not_lose_the_labels_of_some(write_numbered: WriteDocuments, tmp_path: Path) -> None:
    write_numbered([2], tmp_path / "labelled")
    write_numbered([2], tmp_path / "bare")
    write(tmp_path / "labelled", [DocumentRecord(source="s")])
    with pytest.raises(DatasetError, match=r"but not .*bare"):
        merge([tmp_path / "labelled", tmp_path / "bare"], tmp_path / "out")


def test_an_absent_or_truncated_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no side table"):
        DocumentTable.open(tmp_path / "x")
    lines, _ = table_paths(write(tmp_path / "x", [DocumentRecord(source="s")]))
    lines.write_bytes(lines.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"has 14 bytes, x\.documents\.offsets says 15"):
        DocumentTable.open(tmp_path / "x")
