"""Tables that can be asked and not changed."""

from __future__ import annotations

import asyncio
import time
import zipfile
from pathlib import Path

import pytest

from tripod.chat.scripted import ScriptedModel
from tripod.errors import ConfigError, ConversionError, RequestError
from tripod.rag.tables import Tables, ask_tables, statement_in

CSV = "City;Founded (year);Share;Code;Note\nOslo;1048;0.5;007;\nBergen;1070;0.25;008;rain\nOslo;;;009;again\n"


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    (tmp_path / "Old cities.csv").write_text(CSV)
    return Tables.load([tmp_path / "Old cities.csv"])


def test_columns_have_names_and_types_and_nothing_is_null(tables: Tables) -> None:
    assert 'CREATE TABLE "old_cities" ("city" TEXT, "founded_year" INTEGER, "share" REAL, "code" TEXT, "note" TEXT);' in tables.schema
    assert "-- 3 rows, such as:\n-- city | founded_year | share | code | note\n-- Oslo | 1048 | 0.5 | 007 | " in tables.schema
    rows = tables.select("SELECT city, founded_year + 1, share * 2, code, note FROM old_cities ORDER BY code")
    assert rows.rows == (("Oslo", 1049, 1.0, "007", None), ("Bergen", 1071, 0.5, "008", "rain"), ("Oslo", None, None, "009", "again"))


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM old_cities",
        "DROP TABLE old_cities",
        "INSERT INTO old_cities DEFAULT VALUES",
        "UPDATE old_cities SET city = 'x'",
        "ATTACH '/etc/passwd' AS other",
        "PRAGMA writable_schema = 1",
        "VACUUM INTO '/tmp/stolen.db'",
        "CREATE TABLE t (a)",
        "SELECT load_extension('evil')",
        "SELECT 1; DROP TABLE old_cities",
        "SELECT * FROM moons",
        "SELECT nothing FROM old_cities",
        "BEGIN",
        "",
    ],
)
def test_what_does_not_only_read_is_refused(sql: str, tables: Tables) -> None:
    with pytest.raises(RequestError):
        tables.select(sql)
    assert tables.select("SELECT count(*) FROM old_cities").rows == ((3,),)


def test_endless_work_ends(tables: Tables) -> None:
    began_s = time.monotonic()
    with pytest.raises(RequestError, match=r"longer than 0\.2 s"):
        tables.select("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n", timeout_s=0.2)
    assert time.monotonic() - began_s < 3
    with pytest.raises(RequestError, match="too big"):
        tables.select("SELECT zeroblob(1000000000)")


def test_long_answers_are_cut_and_say_so(tables: Tables) -> None:
    rows = tables.select("SELECT city FROM old_cities", max_rows=2)
    assert (len(rows.rows), rows.is_cut, str(rows)) == (2, True, "city\nOslo\nBergen\n...")


def test_a_model_is_shown_its_mistake_and_tries_again(tables: Tables) -> None:
    model = ScriptedModel(["SELECT town FROM old_cities", "Here it is:\n```sql\nSELECT min(founded_year) FROM old_cities;\n```"])
    answer = asyncio.run(ask_tables("How old is the oldest city?", tables, model))
    assert answer.rows.rows == ((1048,),)
    assert answer.sql == "SELECT min(founded_year) FROM old_cities"
    assert "no such column: town" in answer.failures[0]
    assert answer.failures[0] in str(model.prompts[1])
    assert answer.usage.completion_tokens > 0


def test_a_model_that_never_succeeds_is_an_error_with_the_last_reason(tables: Tables) -> None:
    with pytest.raises(RequestError, match="not authorized"):
        asyncio.run(ask_tables("?", tables, ScriptedModel(["DROP TABLE old_cities"] * 2), attempts=2))
    with pytest.raises(ConfigError, match="asks nothing"):
        asyncio.run(ask_tables(" ", tables, ScriptedModel([])))


def test_every_sheet_is_a_table_and_names_stay_distinct(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Year 1"
    for row in (["a", "a", None, "2 b"], [1, 2.5, "x", True], [3, None, "y", False]):
        book.active.append(row)
    book.create_sheet("Year 1 ").append(["z"])
    book.create_sheet("empty")
    book.save(tmp_path / "t.xlsx")
    tables = Tables.load([tmp_path / "t.xlsx"])
    assert tables.select("SELECT a, a_2, column_3, column_4_2_b FROM t_year_1").rows == ((1, 2.5, "x", "True"), (3, None, "y", "False"))
    assert tables.select("SELECT * FROM t_year_1_2").columns == ("z",)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ConfigError, match=r"give \.csv"):
        Tables.load([tmp_path / "a.pdf"])
    with pytest.raises(ConfigError, match="no table was given"):
        Tables.load([])
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ConversionError, match="cannot be read as XLSX"):
        Tables.load([tmp_path / "a.xlsx"])


def test_a_table_that_unpacks_without_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("xl/worksheets/sheet1.xml", b" " * 2_000_000)
    (tmp_path / "long.csv").write_bytes(b"a\n" * 1_000_000)
    monkeypatch.setattr("tripod.rag.tables.MAX_FILE_BYTES", 1_000_000)
    for name in ("bomb.xlsx", "long.csv"):
        with pytest.raises(ConversionError, match=f"{name} holds 2000000 bytes, unpacked"):
            Tables.load([tmp_path / name])


@pytest.mark.parametrize("text", ["SELECT 1", "SELECT 1;", "```sql\nSELECT 1;\n```", "So:\n```\nSELECT 1\n```\nDone."])
def test_the_statement_is_found_in_what_was_written(text: str) -> None:
    assert statement_in(text) == "SELECT 1"
