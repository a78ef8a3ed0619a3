"""Files and folders that appear when they are whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tripod.durable_files import atomic_file, durable_file, durable_folder, write_flushed


@pytest.mark.parametrize("file", [atomic_file, durable_file])
def test_a_file_appears_when_the_block_ends(tmp_path: Path, file: Any) -> None:
    with file(tmp_path / "new" / "x") as stream:
        stream.write(b"whole")
        assert not (tmp_path / "new" / "x").exists()
    assert (tmp_path / "new" / "x").read_bytes() == b"whole"


@pytest.mark.parametrize("file", [atomic_file, durable_file])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, file: Any) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(TypeError), file(tmp_path / "x") as stream:
        stream.writelines([b"half", "not bytes"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as first, atomic_file(tmp_path / "x") as second:
        first.write(b"first")
        second.write(b"second one")
        second.flush()
        first.write(b", to its end")
    assert (tmp_path / "x").read_bytes() == b"first, to its end"  # the outer block ends last


def test_a_durable_file_is_flushed_before_it_has_its_name_and_its_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, seen = os.fsync, []

    def watched(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (tmp_path / "x").exists()))
        fsync(descriptor)

    monkeypatch.setattr("tripod.durable_files.os.fsync", watched)
    with durable_file(tmp_path / "x") as stream:
        stream.write(b"content")
    (flushed, was_there), folder = seen
    assert flushed.name.startswith(".partial-x-")
    assert not was_there
    assert folder == (tmp_path, True)


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path: Path) -> None:
    with durable_folder(tmp_path / "run" / "step1") as partial:
        write_flushed(partial / "a", b"1")
        assert not (tmp_path / "run" / "step1").exists()
    assert (tmp_path / "run" / "step1" / "a").read_bytes() == b"1"
    with pytest.raises(IsADirectoryError), durable_folder(tmp_path / "run" / "step2") as partial:
        write_flushed(partial, b"1")
    with pytest.raises(OSError), durable_folder(tmp_path / "run" / "step1"):  # noqa: PT011 - which one depends on the system
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step1"]
