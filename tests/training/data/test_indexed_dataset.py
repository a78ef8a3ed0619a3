"""Megatron's memory-mapped pair of files: the bytes, the reader, the refusals."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.errors import DatasetError
from tripod.text.load_tokenizer import load_tokenizer
from tripod.training.data.indexed_dataset import IndexedDataset, index_path, inspect, token_dtype, token_path
from tripod.training.data.indexed_dataset_writer import IndexedDatasetWriter, exclusive_byte_offsets, merge

GOLDEN_IDX = "f5175c60a81918adea6896f195db1cbb104962b45d4fc66c7ce04f875891abd8"
GOLDEN_BIN = "15ec25869dccbcde6ec6398446fbd51a62c3d75eb3cf48a8b0e8a19b116c8b5d"
U16 = np.dtype("<u2")
I32 = np.dtype("<i4")
DOCUMENTS = st.lists(st.lists(st.integers(0, 65535), max_size=12), max_size=8)


def write(prefix: Path, documents: list[list[int]], dtype: np.dtype = U16) -> Path:
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def read(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset.open(prefix)
    return [dataset.tokens(i).tolist() for i in range(len(dataset))]


def test_the_published_pair_is_read(shared_data: Path) -> None:
    golden = IndexedDataset.open(shared_data / "megatron-golden" / "sample_data_text_document")
    assert golden.sizes.tolist() == [9, 6, 20, 22, 27, 26, 50]
    assert golden.document_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert golden.tokens(0).tolist() == [18, 27, 1552, 310, 253, 806, 3389, 15, 0]
    assert inspect(golden.prefix).problems == ()


def test_the_pair_written_from_the_published_jsonl_is_byte_identical(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(shared_data / "tokenizers" / "pythia-20B_tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    lines = (shared_data / "megatron-golden" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    prefix = write(tmp_path / "out", [[*tokenizer.encode(json.loads(line)["text"]), 0] for line in lines])
    assert hashlib.sha256(index_path(prefix).read_bytes()).hexdigest() == GOLDEN_IDX
    assert hashlib.sha256(token_path(prefix).read_bytes()).hexdigest() == GOLDEN_BIN


def test_the_index_has_the_stated_layout_byte_for_byte(tmp_path: Path) -> None:
    with IndexedDatasetWriter(tmp_path / "two", I32) as writer:
        writer.add_sequence([70000, 1, 2])  # a document of two sequences
        writer.add_sequence([])
        writer.end_document()
        writer.add_document([5])
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 3, 3)
    expected += struct.pack("<3i", 3, 0, 1) + struct.pack("<3q", 0, 12, 12) + struct.pack("<3q", 0, 2, 3)
    assert index_path(tmp_path / "two").read_bytes() == expected
    assert token_path(tmp_path / "two").read_bytes() == struct.pack("<4i", 70000, 1, 2, 5)


@given(documents=DOCUMENTS, dtype=st.sampled_from([U16, I32]))
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: np.dtype) -> None:
    prefix = write(tmp_path_factory.mktemp("round") / "trip", documents, dtype)
    assert read(prefix) == documents
    report = inspect(prefix)
    assert report.problems == ()
    assert (report.num_documents, report.num_tokens) == (len(documents), sum(map(len, documents)))
    assert report.num_empty == sum(not document for document in documents)
    assert report.max_token_id == max((max(document) for document in documents if document), default=None)


@given(parts=st.lists(DOCUMENTS, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_merge_is_the_file_that_one_writer_would_have_written(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    whole = write(folder / "whole", [document for part in parts for document in part])
    merge([write(folder / str(i), part) for i, part in enumerate(parts)], folder / "merged")
    assert index_path(folder / "merged").read_bytes() == index_path(whole).read_bytes()
    assert token_path(folder / "merged").read_bytes() == token_path(whole).read_bytes()


def test_byte_offsets_pass_two_to_the_31_tokens() -> None:
    sizes = np.full(3, 2**31 - 1, np.int32)
    assert exclusive_byte_offsets(sizes, 2).tolist() == [0, 2**32 - 2, 2**33 - 4, 3 * (2**32 - 2)]


def test_a_sequence_behind_two_to_the_31_tokens_is_read(tmp_path: Path) -> None:
    prefix = tmp_path / "sparse"
    sizes = np.array([2**31 - 1, 2**31 - 1, 3], np.int32)  # 8.6 GB of holes that take no space on the disk
    pointers = [0, 2 * (2**31 - 1), 4 * (2**31 - 1)]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 3, 4) + sizes.tobytes() + struct.pack("<3q4q", *pointers, 0, 1, 2, 3)
    index_path(prefix).write_bytes(index)
    with token_path(prefix).open("wb") as stream:
        stream.seek(pointers[2])
        stream.write(struct.pack("<3H", 7, 8, 9))
    dataset = IndexedDataset.open(prefix)
    assert dataset.tokens(2).tolist() == [7, 8, 9]
    assert dataset.num_tokens == 2**32 + 1


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, U16), (65500, I32)])
def test_the_dtype_is_the_one_that_gpt_neox_picks(vocab_size: int, dtype: np.dtype) -> None:
    assert token_dtype(vocab_size) == dtype


@pytest.mark.parametrize("ids", [[65536], [-1]])
def test_an_id_that_would_wrap_is_refused(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(DatasetError, match="do not fit uint16"):
        write(tmp_path / "x", [ids])
    assert list(tmp_path.iterdir()) == []  # nothing half-written stays


def test_the_fairseq_look_alike_is_named(tmp_path: Path) -> None:
    fairseq = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 4, 2) + struct.pack("<2i", 3, 4) + struct.pack("<2q", 0, 12)
    index_path(tmp_path / "fs").write_bytes(fairseq)
    token_path(tmp_path / "fs").write_bytes(bytes(28))
    with pytest.raises(DatasetError, match=r"fairseq.*26 \+ 12 x 2"):
        IndexedDataset.open(tmp_path / "fs")


@given(cut=st.integers(0, 73))
@settings(max_examples=74, deadline=None)
def test_an_index_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    prefix = write(tmp_path_factory.mktemp("cut") / "x", [[1, 2], [3]])
    whole = index_path(prefix).read_bytes()
    assert len(whole) == 82
    index_path(prefix).write_bytes(whole[:cut])
    with pytest.raises(DatasetError, match=r"truncated|begins with|fairseq"):
        IndexedDataset.open(prefix)


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, b"TNTIDX\0\0", "legacy"),
        (0, b"notanidx!", "begins with"),
        (9, b"\2", "version 2"),
        (17, b"\6", "float"),
        (17, b"\x63", "code 99"),
    ],
)
def test_a_header_of_another_kind_is_refused_with_the_reason(tmp_path: Path, position: int, value: bytes, reason: str) -> None:
    prefix = write(tmp_path / "x", [[1, 2], [3]])
    content = bytearray(index_path(prefix).read_bytes())
    content[position : position + len(value)] = value
    index_path(prefix).write_bytes(content)
    with pytest.raises(DatasetError, match=reason):
        IndexedDataset.open(prefix)


@pytest.mark.parametrize(("length", "state"), [(5, "truncated"), (4, "truncated"), (8, "too long"), (0, "truncated")])
def test_tokens_of_another_length_than_the_index_says_are_refused(tmp_path: Path, length: int, state: str) -> None:
    prefix = write(tmp_path / "x", [[1, 2], [3]])
    token_path(prefix).write_bytes(bytes(length))
    with pytest.raises(DatasetError, match=f"{state}: {length} bytes, but x.idx says 6"):
        IndexedDataset.open(prefix)


def test_inspect_finds_overflowed_pointers_and_a_document_index_that_a_merge_forgot(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [[1, 2], [3], [4]])
    content = bytearray(index_path(prefix).read_bytes())
    struct.pack_into("<q", content, 34 + 12 + 8, -4)  # pointer of sequence 1
    struct.pack_into("<q", content, 34 + 12 + 24 + 24, 2)  # last document border
    index_path(prefix).write_bytes(content)
    overflow, borders = inspect(prefix).problems
    assert "sequence 1 begins at byte -4, its predecessors end at 4" in overflow
    assert "ends at sequence 2 of 3" in borders
    with pytest.raises(DatasetError, match="does not cover its 3 sequences"):
        merge([prefix], tmp_path / "merged")


def test_data_sets_of_two_dtypes_are_not_merged(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="int32 tokens"):
        merge([write(tmp_path / "a", [[1]]), write(tmp_path / "b", [[1]], I32)], tmp_path / "c")


def test_tokens_outside_a_sequence_are_refused(tmp_path: Path) -> None:
    dataset = IndexedDataset.open(write(tmp_path / "x", [[1, 2], [3]]))
    assert dataset.tokens(0, 1, 2).tolist() == [2]
    for call in ((0, 1, 3), (2,), (-1,)):
        with pytest.raises(DatasetError, match="asked for"):
            dataset.tokens(*call)
