"""From files to a data set."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tripod.errors import ConfigError, ConversionError, MissingExtraError
from tripod.text.byte_level import write_byte_tokenizer
from tripod.training.data import build
from tripod.training.data.build import build_dataset
from tripod.training.data.document_table import DocumentRecord, DocumentTable
from tripod.training.data.indexed_dataset import IndexedDataset, index_path, token_path
from tripod.training.data.raw_documents import RawDocument


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")  # the id of a byte is the byte; 256 ends a document
    write_byte_tokenizer(folder)
    return folder


def jsonl(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def texts(prefix: Path) -> list[str]:
    dataset = IndexedDataset.open(prefix)
    return [bytes(t for t in dataset.tokens(i).tolist() if t < 256).decode() for i in range(len(dataset))]


def test_the_published_jsonl_gives_the_published_pair(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(shared_data / "tokenizers" / "pythia-20B_tokenizer.json")
    report = build_dataset([shared_data / "megatron-golden" / "sample.jsonl"], tmp_path, tmp_path / "out", append_eod=True)
    published = shared_data / "megatron-golden" / "sample_data_text_document"
    assert index_path(tmp_path / "out").read_bytes() == index_path(published).read_bytes()
    assert token_path(tmp_path / "out").read_bytes() == token_path(published).read_bytes()
    assert (report.num_documents, report.num_tokens, report.empty) == (7, 160, ())


def test_every_field_but_the_text_is_kept_as_a_label(tokenizer: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"text": "eins", "meta": {"set": "Größe"}, "n": 1}, {"text": ""}, {"text": "drei"})
    report = build_dataset([source], tokenizer, tmp_path / "out", append_eod=True)
    table = DocumentTable.open(tmp_path / "out")
    assert [(r.source, r.line, dict(r.labels)) for r in table] == [
        ("a.jsonl", 1, {"meta": {"set": "Größe"}, "n": 1}),
        ("a.jsonl", 3, {}),
    ]
    assert report.empty == ("a.jsonl:2",)
    assert IndexedDataset.open(tmp_path / "out").tokens(1).tolist() == [*b"drei", 256]


def test_a_folder_is_read_in_the_order_of_its_relative_paths(tokenizer: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for name in ("b.md", "a/z.txt", "a.rst", "B.txt", ".git/x.txt", "a/.hidden.md", "picture.png"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(f"I am {name}", encoding="utf-8")
    build_dataset([corpus], tokenizer, tmp_path / "out", append_eod=False)
    expected = ["B.txt", "a.rst", "a/z.txt", "b.md"]  # "." stands before "/" in every encoding
    assert [record.source for record in DocumentTable.open(tmp_path / "out")] == expected
    assert texts(tmp_path / "out") == [f"I am {name}" for name in expected]


def test_three_processes_write_the_bytes_that_one_writes(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BATCH_CHARS", 200)  # some thirty batches, of very unequal cost
    source = jsonl(tmp_path / "a.jsonl", *({"text": f"{i}-" + "ä" * (i * 37 % 400), "i": i} for i in range(60)))
    digests = []
    for workers in (1, 3):
        prefix = tmp_path / str(workers) / "out"
        build_dataset([source], tokenizer, prefix, append_eod=True, workers=workers)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in prefix.parent.iterdir()})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def test_a_script_that_does_not_guard_its_entry_is_told_to(tokenizer: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    call = f"build_dataset([Path({str(jsonl(tmp_path / 'a.jsonl', {'text': 'x'}))!r})], Path({str(tokenizer)!r}), Path('out')"
    script.write_text(
        f"from pathlib import Path\nfrom tripod.training.data.build import build_dataset\n{call}, append_eod=True, workers=2)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ran.returncode == 1
    assert "ConfigError: one of 2 tokenising processes ended before its work" in ran.stderr
    assert not (tmp_path / "out.bin").exists()


def test_the_number_of_batches_in_flight_is_bounded(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BATCH_CHARS", 1)
    num_read = 0

    def documents() -> Iterator[RawDocument]:
        nonlocal num_read
        for _ in range(50):
            num_read += 1
            yield RawDocument("x", DocumentRecord(source="s"))

    encoded = build._encode_in_processes(build._batches(documents()), tokenizer, 1)
    next(encoded)
    assert num_read <= build._BATCHES_PER_WORKER + 2
    encoded.close()


def test_progress_counts_documents_and_can_stop_the_build(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BATCH_CHARS", 1)
    source = jsonl(tmp_path / "a.jsonl", *({"text": "x"} for _ in range(5)))
    seen: list[int] = []
    build_dataset([source], tokenizer, tmp_path / "out", append_eod=False, progress=lambda stage, done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5]

    def stop(stage: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset([source], tokenizer, tmp_path / "stopped", append_eod=False, progress=stop)
    assert list(tmp_path.glob("stopped*")) == []


def test_a_document_that_spells_the_end_of_a_document_is_counted(tokenizer: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"text": "one<|endoftext|>two"}, {"text": "three"})
    assert build_dataset([source], tokenizer, tmp_path / "out", append_eod=True).num_with_end_inside == 1


@pytest.mark.parametrize("line", ['{"text": 3}', "[]", '{"txt": "x"}', "{", '{"text": "\\ud800"}', '{"text": "\xff"}'])
def test_a_broken_line_is_named_and_nothing_is_written(tokenizer: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(ConversionError, match=r"a\.jsonl, line 2"):
        build_dataset([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", append_eod=True)
    assert list(tmp_path.glob("out*")) == []


def test_zstd_without_its_package_names_the_extra(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"(\xb5/\xfd")
    with pytest.raises(MissingExtraError, match=r"tripod\[training\]"):
        build_dataset([tmp_path / "a.jsonl.zst"], tokenizer, tmp_path / "out", append_eod=True)


def test_zstd_of_several_frames_is_read(tokenizer: Path, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.compress(json.dumps({"text": text}).encode() + b"\n") for text in ("one", "two")]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    build_dataset([tmp_path / "a.jsonl.zst"], tokenizer, tmp_path / "out", append_eod=False)
    assert texts(tmp_path / "out") == ["one", "two"]


@pytest.mark.parametrize("name", ["absent", "picture.png", "empty"])
def test_an_input_that_cannot_be_read_is_refused(tokenizer: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "picture.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=name):
        build_dataset([tmp_path / name], tokenizer, tmp_path / "out", append_eod=True)
