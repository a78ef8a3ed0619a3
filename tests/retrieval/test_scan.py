"""What of a folder is read, and what is counted as ignored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tripod.errors import ConfigError
from tripod.retrieval.scan import scan

SUFFIXES = {".md", ".txt"}


def test_files_are_listed_by_their_relative_paths_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("z.md", "b/a.TXT", "a.md"):
        (tmp_path / name).write_text("x")
    assert [file.source for file in scan(tmp_path, suffixes=SUFFIXES).files] == ["a.md", "b/a.TXT", "z.md"]


def test_what_is_not_read_is_counted_by_its_reason(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    for name in ("a.md", "slides.pptx", "more.PPTX", "LICENSE", ".hidden.md", "draft.md"):
        (tmp_path / name).write_text("x")
    found = scan(tmp_path, suffixes=SUFFIXES, exclude=["draft*"])
    assert [file.source for file in found.files] == ["a.md"]
    assert found.ignored == {"hidden": 2, "caches and virtual environments": 1, "suffix .pptx": 2, "no suffix": 1, "excluded": 1}


def test_links_in_loops_end(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.md").symlink_to(tmp_path / "self.md")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nothing.md")
    (tmp_path / "linked.md").symlink_to(tmp_path / "a.md")
    found = scan(tmp_path, suffixes=SUFFIXES)
    assert [file.source for file in found.files] == ["a.md", "linked.md"]
    assert found.ignored == {"link to a folder": 1, "broken link": 2} or found.ignored == {
        "link to a folder": 1,
        "broken link": 1,
        "link in a loop": 1,
    }


def test_a_name_that_is_not_utf_8_is_counted_and_left(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    found = scan(tmp_path, suffixes=SUFFIXES)
    assert [file.source for file in found.files] == ["a.md"]
    assert found.ignored == {"name is not UTF-8": 1}


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    found = scan(tmp_path, suffixes=SUFFIXES)
    assert (found.files, found.ignored) == ((), {"not a regular file": 1})


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        scan(tmp_path / "nothing", suffixes=SUFFIXES)
