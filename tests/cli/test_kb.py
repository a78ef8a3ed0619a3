"""`tripod kb`: what it tells of an index, and what it does to it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Command


@pytest.fixture
def database(tripod: Command, handbook: Path, tmp_path: Path) -> Path:
    path = tmp_path / "kb.db"
    assert tripod("index", handbook, "--into", path).code == 0
    return path


def test_stats_tell_what_an_index_holds(tripod: Command, database: Path, handbook: Path) -> None:
    told = json.loads(tripod("kb", "stats", database, "--json").out)
    assert told["num_sources"] == len(list(handbook.iterdir()))
    assert told["num_unembedded"] == told["num_sources"]
    assert (told["embedder"], told["vectors"], told["approximate"]) == (None, "f32", None)
    assert told["num_bytes"] >= database.stat().st_size
    assert f"passages  {told['num_passages']}\n" in tripod("kb", "stats", database).out


def test_a_check_finds_damage_and_a_repair_ends_it(tripod: Command, database: Path) -> None:
    sound = tripod("kb", "check", database)
    assert (sound.code, sound.out) == (0, "nothing is wrong\n")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM words")
        connection.commit()
    damaged = tripod("kb", "check", database)
    assert damaged.code == 1
    assert "passages without words" in damaged.out
    assert tripod("kb", "repair", database).out == "repaired; nothing is wrong\n"
    assert json.loads(tripod("kb", "check", database, "--json").out) == {"found": []}


def test_an_exported_index_is_imported_and_found_unchanged_by_the_next_sync(
    tripod: Command, database: Path, handbook: Path, tmp_path: Path
) -> None:
    archive, copy = tmp_path / "kb.jsonl.gz", tmp_path / "copy.db"
    assert tripod("kb", "export", database, archive).out.startswith(f"{archive}: 3 sources")
    assert tripod("kb", "import", archive, "--into", copy).out == f"{copy}: 3 sources\n"
    report = json.loads(tripod("index", handbook, "--into", copy, "--json").out)
    assert (report["added"], report["changed"], report["unchanged"]) == (0, 0, 3)
    assert tripod("search", copy, "dome", "--json").out == tripod("search", database, "dome", "--json").out


def test_what_is_no_index_is_refused(tripod: Command, tmp_path: Path) -> None:
    absent = tripod("kb", "stats", tmp_path / "none.db")
    assert absent.code == 2
    assert "there is no file" in absent.err
    (tmp_path / "notes.db").write_text("precious notes")
    assert tripod("kb", "check", tmp_path / "notes.db").code == 2
    assert tripod("kb", "import", tmp_path / "notes.db", "--into", tmp_path / "new.db").code == 2
    assert not (tmp_path / "new.db").exists()


def test_an_index_in_postgresql_is_made_searched_and_looked_after_by_its_address(tripod: Command, handbook: Path, database: Path) -> None:
    from tests.retrieval.postgres_server import fresh_index, running_server

    with running_server() as server:
        address = fresh_index(server)
        missing = tripod("kb", "stats", address)
        assert missing.code == 2
        assert "there is no index" in missing.err
        assert "added 3" in tripod("index", handbook, "--into", address).out
        assert tripod("search", address, "dome", "--json").out == tripod("search", database, "dome", "--json").out
        assert tripod("ask", address, "What does the dome do?").code == 0
        assert tripod("kb", "check", address).out == "nothing is wrong\n"
