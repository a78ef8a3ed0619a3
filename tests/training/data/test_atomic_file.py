"""Files that appear when they are complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripod.training.data.atomic_file import atomic_file


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "x") as stream:
        stream.write(b"whole")
        assert not (tmp_path / "new" / "x").exists()
    assert (tmp_path / "new" / "x").read_bytes() == b"whole"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(tmp_path / "x") as stream:
        stream.writelines([b"half", "not bytes"])  # type: ignore[list-item]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as first, atomic_file(tmp_path / "x") as second:
        first.write(b"first")
        second.write(b"second one")
        second.flush()
        first.write(b", to its end")
    assert (tmp_path / "x").read_bytes() == b"first, to its end"  # the outer block ends last
