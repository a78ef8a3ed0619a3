"""Cutting, joining and checking large files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tripod.errors import DatasetError
from tripod.training.data.shards import find_shards, read_hashes, shard, unshard, verify_hashes


@given(content=st.binary(min_size=1, max_size=50), shard_bytes=st.integers(1, 60))
@settings(deadline=None)
def test_joined_shards_are_the_file(tmp_path_factory: pytest.TempPathFactory, content: bytes, shard_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "whole.bin").write_bytes(content)
    shards = shard(folder / "whole.bin", shard_bytes=shard_bytes)
    assert [path.stat().st_size for path in shards[:-1]] == [shard_bytes] * (len(shards) - 1)
    unshard(shards[-1], folder / "joined.bin")
    assert (folder / "joined.bin").read_bytes() == content


def test_the_last_number_of_a_name_is_the_index_of_the_last_shard(tmp_path: Path) -> None:
    (tmp_path / "document.bin").write_bytes(bytes(10))
    names = [path.name for path in shard(tmp_path / "document.bin", shard_bytes=5)]
    assert names == ["document-00000-of-00001.bin", "document-00001-of-00001.bin"]


def test_a_missing_or_truncated_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.bin").write_bytes(bytes(12))
    first, second, third = shard(tmp_path / "d.bin", shard_bytes=4)
    second.write_bytes(bytes(3))
    with pytest.raises(DatasetError, match=r"00001-of-00002\.bin has 3 bytes, the first shard 4"):
        unshard(first, tmp_path / "out")
    third.unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 shards are missing.*00002-of-00002"):
        find_shards(first)
    assert not (tmp_path / "out").exists()


def test_the_published_list_of_hashes_is_read(shared_data: Path) -> None:
    hashes = read_hashes(shared_data / "pythia-configs" / "shard_hashes.txt")
    assert len(hashes) == 84  # 83 shards and the index
    assert hashes["pile_0.87_deduped_text_document.idx"] == "a659c5a57fa772fb6d3582c6e0b3a55c0c43b16ee8ea72ac6a70cebcdd35d669"
    assert (
        hashes["pile_0.87_deduped_text_document-00000-of-00082.bin"] == "44fb8e4898a07bacb71aba969afc4ffbe382813c09420122d57451cebe1d56a2"
    )


@pytest.mark.parametrize("order", ["{name} {digest}", "{digest}  {name}", "{digest} *{name}"])
def test_each_listed_file_is_matching_differing_or_missing(tmp_path: Path, order: str) -> None:
    (tmp_path / "good").write_bytes(b"abc")
    (tmp_path / "bad").write_bytes(b"abd")
    digest = hashlib.sha256(b"abc").hexdigest()
    (tmp_path / "list").write_text("".join(order.format(name=name, digest=digest.upper()) + "\n" for name in ("good", "bad", "gone")))
    report = verify_hashes(tmp_path / "list", tmp_path)
    assert (report.matching, report.differing, report.missing) == (("good",), ("bad",), ("gone",))
    assert not report.is_sound


def test_a_line_that_is_no_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("file 1234\n")
    with pytest.raises(DatasetError, match="line 1: 'file 1234'"):
        read_hashes(tmp_path / "list")
