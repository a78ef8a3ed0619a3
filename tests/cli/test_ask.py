"""`tripod ask`, `tripod index` and `tripod search`, on a small handbook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, python_m_tripod
from tests.rag.passages import LOCKS, passage
from tripod.cli.ask import source_lines
from tripod.cli.open_index import cached_index_path
from tripod.rag.answer import Answer
from tripod.rag.citations import cite

QUESTION = "What happens if the motor does not answer within ninety seconds?"


def test_an_answer_is_on_stdout_and_all_else_on_stderr(tripod: Command, handbook: Path, cache: Path) -> None:
    outcome = tripod("ask", handbook, QUESTION)
    assert outcome.code == 0
    answer, _, places = outcome.out.partition("\n\n")
    assert "the siren is switched on and the duty engineer is called.\u201d [" in answer
    assert "dome.py:7, dome.close_dome" in places
    assert "index: " not in outcome.out
    assert f"index: {cache}" in outcome.err
    assert "no language model was used" in outcome.err
    assert "search is by words only: this test has no embedder" in outcome.err


def test_nothing_is_written_into_the_folder(tripod: Command, handbook: Path, cache: Path) -> None:
    before = sorted(handbook.rglob("*"))
    tripod("ask", handbook, QUESTION)
    assert sorted(handbook.rglob("*")) == before
    assert list(cache.rglob("handbook-*.db"))


def test_json_gives_spans_that_slice(tripod: Command, handbook: Path) -> None:
    outcome = tripod("ask", handbook, QUESTION, "--json")
    answer = json.loads(outcome.out)
    assert (answer["kind"], answer["question"], answer["model"]) == ("extractive", QUESTION, "")
    assert answer["citations"]
    for citation in answer["citations"]:
        source = (handbook / citation["source"]).read_text(encoding="utf-8")
        assert source[citation["source_start"] : citation["source_end"]] == citation["quote"]
        assert answer["text"][citation["start"] : citation["end"]] == " ".join(citation["quote"].split())
        assert citation["line"] == source.count("\n", 0, citation["source_start"]) + 1
    assert [span["name"] for span in answer["trace"]] == ["retrieve", "extract", "check"]


def test_a_question_that_is_not_answered_is_abstained_from(tripod: Command, handbook: Path) -> None:
    outcome = tripod("ask", handbook, "Who won the football world cup of 1998?", "--json")
    answer = json.loads(outcome.out)
    assert (outcome.code, answer["kind"], answer["citations"]) == (0, "abstained", [])


def test_a_filter_chooses_among_the_documents(tripod: Command, handbook: Path) -> None:
    for command in ("search", "ask"):
        for where, expected in (({"format": "markdown"}, "storage.md"), ({"source": {"contains": "dome"}}, "dome.py")):
            outcome = tripod(command, handbook, "When does the dome close, and when is an exposure deleted?", "--where", json.dumps(where))
            sources = {name for name in ("dome.py", "storage.md", "telescope.rst") if name in outcome.out}
            assert (outcome.code, sources) == (0, {expected}), outcome
        for where, reason in (("format=markdown", "is no JSON"), ('{"year": {"~": 1}}', "is no operator"), ("3", "is not a mapping")):
            outcome = tripod(command, handbook, "dome", "--where", where)
            assert (outcome.code, outcome.out) == (2, "")
            assert reason in " ".join(outcome.err.split())


@pytest.mark.with_embedder
def test_an_index_is_made_kept_and_searched(tripod: Command, handbook: Path, tmp_path: Path) -> None:
    kb = tmp_path / "kb.db"
    report = json.loads(tripod("index", handbook, "--into", kb, "--json").out)
    assert report == {"added": 3, "changed": 0, "removed": 0, "unchanged": 0, "failed": [], "ignored": report["ignored"]}
    assert "unchanged 3" in tripod("index", handbook, "--into", kb).out
    for mode in ("bm25", "dense", "hybrid"):
        outcome = tripod("search", kb, "when does the dome close", "-k", "2", "--mode", mode, "--json")
        if mode == "dense" and outcome.code == 2:
            assert "by words only" in outcome.err  # there are no weights on this machine
            continue
        found = json.loads(outcome.out)
        assert len(found) == 2
        for hit in found:
            assert set(hit) == {"source", "start", "end", "text", "score"}
            assert (handbook / hit["source"]).read_text(encoding="utf-8")[hit["start"] : hit["end"]] == hit["text"]
    assert tripod("ask", kb, QUESTION).code == 0


def test_a_folder_without_documents_is_a_wrong_call(tripod: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments in (("ask", tmp_path / "empty", "Why?"), ("index", tmp_path / "empty", "--into", tmp_path / "kb.db")):
        outcome = tripod(*arguments)
        assert outcome.code == 2
        assert "holds no document" in outcome.err.splitlines()[-1]


def test_a_missing_folder_is_a_wrong_call(tripod: Command, tmp_path: Path) -> None:
    for arguments in (("ask", tmp_path / "none", "Why?"), ("index", tmp_path / "none", "--into", tmp_path / "kb.db")):
        outcome = tripod(*arguments)
        assert outcome.code == 2
        assert str(tmp_path / "none") in outcome.err.splitlines()[-1]
    assert not (tmp_path / "kb.db").exists()


def test_a_file_that_is_no_index_is_a_wrong_call(tripod: Command, tmp_path: Path) -> None:
    other = tmp_path / "kb.db"
    other.write_text("not an index")
    outcome = tripod("search", other, "anything")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert other.read_text() == "not an index"


@pytest.mark.with_embedder
def test_an_index_of_another_embedder_is_refused(tripod: Command, handbook: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import tripod as package
    from tests.cli.letters import LetterEmbedder
    from tripod.retrieval.index import Index

    kb = tmp_path / "kb.db"

    async def make() -> None:
        async with Index(kb, embedder=LetterEmbedder()) as index:
            await index.sync(handbook)

    package.run(make())
    outcome = tripod("ask", kb, QUESTION)
    assert outcome.code == 2
    assert "letters" in outcome.err


def test_a_broken_checkpoint_is_a_wrong_call(tripod: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    outcome = tripod("generate", model, "Once")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1


def test_an_option_out_of_range_names_itself(tripod: Command, tmp_path: Path) -> None:
    outcome = tripod("generate", tmp_path, "Once", "--temperature", "-1")
    assert outcome.code == 2
    assert "temperature=-1.0 is out of range" in outcome.err


@pytest.mark.with_embedder
def test_a_cached_index_of_another_embedder_is_made_anew(tripod: Command, handbook: Path) -> None:
    pytest.importorskip("torch")
    import tripod as package
    from tests.cli.letters import LetterEmbedder
    from tripod.retrieval.index import Index

    path = cached_index_path(handbook)
    path.parent.mkdir(parents=True)

    async def make() -> None:
        async with Index(path, embedder=LetterEmbedder()) as index:
            await index.sync(handbook)

    package.run(make())
    outcome = tripod("ask", handbook, QUESTION)
    assert outcome.code == 0
    assert "the siren is switched on" in outcome.out
    assert "making the cached index anew" in outcome.err


def test_a_terminal_without_unicode_gets_every_answer(handbook: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("The caf\u00e9 is open until midnight \U0001f600.", encoding="utf-8")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    plain = python_m_tripod("ask", tmp_path / "docs", "Until when is the caf\u00e9 open?", **ascii_only)
    assert plain.code == 0, plain.err
    assert "caf\\xe9 is open until midnight \\U0001f600" in plain.out
    as_json = python_m_tripod("search", tmp_path / "docs", "caf\u00e9", "--mode", "bm25", "--json", **ascii_only)
    assert "The caf\u00e9 is open until midnight \U0001f600." in json.dumps(json.loads(as_json.out), ensure_ascii=False)


def test_a_cache_that_cannot_be_written_is_named_with_a_way_out(
    tripod: Command, handbook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    outcome = tripod("ask", handbook, QUESTION)
    assert outcome.code == 2
    assert "set XDG_CACHE_HOME to a folder that can be written" in outcome.err


def test_notes_are_lines_without_blank_ones_between(tripod: Command, handbook: Path) -> None:
    assert "" not in tripod("ask", handbook, QUESTION).err.splitlines()


def test_names_that_look_like_markup_do_not_end_the_progress_bar(tripod: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal then
    (tmp_path / "docs" / "a[").mkdir(parents=True)
    (tmp_path / "docs" / "a[" / "b].md").write_text("Text.")
    assert tripod("index", tmp_path / "docs", "--into", tmp_path / "kb.db").code == 0


def test_words_that_are_not_utf_8_are_a_wrong_call(tripod: Command, handbook: Path, tmp_path: Path) -> None:
    outcome = tripod("search", handbook, "dome \udcff")
    assert outcome.code == 2
    assert "was it read as UTF-8" in outcome.err
    (tmp_path / "\udcff").mkdir()
    (tmp_path / "\udcff" / "a.md").write_text("Text.")
    outcome = tripod("ask", tmp_path / "\udcff", "Why?")
    assert outcome.code == 2
    assert "is not UTF-8" in outcome.err


def test_a_place_is_shown_once_and_that_of_a_quotation_alone() -> None:
    given = passage("Some words.\nA block is freed late.", source="a.md", start=0, line=1, section="")
    text = "They say \u201cA block is freed late\u201d [1]. And again [1]. Locks are other things [2]."
    answer = Answer(question="?", text=text, kind="generated", citations=cite(text, [given, LOCKS]), passages=(given, LOCKS))
    assert source_lines(answer) == ["[1] a.md:2", "[2] locks.md:1, Locks"]


def test_an_index_that_lacks_a_file_says_so_and_exits_with_1(tripod: Command, tmp_path: Path) -> None:
    docs, kb = tmp_path / "docs", tmp_path / "kb.db"
    docs.mkdir()
    (docs / "good.md").write_text("# Dome\n\nThe dome turns.")
    (docs / "bad.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    for arguments in ((), ("--json",)):
        outcome = tripod("index", docs, "--into", kb, *arguments)
        assert outcome.code == 1
        assert "bad.pdf: it is not a PDF that can be read" in outcome.err
    assert "The dome turns" in tripod("search", kb, "dome").out
    (docs / "bad.pdf").unlink()
    assert tripod("index", docs, "--into", kb).code == 0


def test_files_are_an_origin_with_a_name(tripod: Command, tmp_path: Path) -> None:
    kb = tmp_path / "kb.db"
    for name in ("a.md", "b.csv"):
        (tmp_path / name).write_text("number,word\n1,quartz\n")
    files = [tmp_path / "a.md", tmp_path / "b.csv"]
    assert "added 2" in tripod("index", *files, "--name", "files", "--into", kb).out
    assert "removed 1, unchanged 1" in tripod("index", files[0], "--name", "files", "--into", kb).out
    refused = tripod("index", "http://127.0.0.1:8000/", "--into", kb)
    assert refused.code == 1
    assert "not a public address" in refused.err
