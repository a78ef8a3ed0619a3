"""Which converter reads what, and formats that installed packages add."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import tripod
from tripod.errors import ConfigError
from tripod.retrieval.converters.isolated import Isolated
from tripod.retrieval.converters.plain_text import PlainText
from tripod.retrieval.converters.registry import all_converters, by_suffix
from tripod.retrieval.index import Index

PLUGIN = '''
from tripod.documents import Document


class Shouted:
    """A format of another package: text that is written backwards."""

    suffixes = frozenset({".sdrawkcab"})

    def convert(self, content, source):
        return Document(source=source, text=content.decode()[::-1], metadata={"format": "sdrawkcab"})


class Instead(Shouted):
    suffixes = frozenset({".txt"})
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where Python finds packages, here and in workers."""
    folder = tmp_path / "site"
    (folder / "shouted-1.0.dist-info").mkdir(parents=True)
    (folder / "shouted.py").write_text(PLUGIN)
    (folder / "shouted-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shouted\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


def entry(site: Path, value: str) -> None:
    (site / "shouted-1.0.dist-info" / "entry_points.txt").write_text(f"[tripod.converters]\nsdrawkcab = {value}\n")


def test_a_format_of_an_installed_package_is_preferred_to_ours(site: Path) -> None:
    entry(site, "shouted:Instead")
    chosen = by_suffix(all_converters())[".txt"]
    assert isinstance(chosen, Isolated)
    assert type(chosen.inner).__name__ == "Instead"


def test_an_installed_package_adds_a_format_which_a_worker_reads(site: Path, tmp_path: Path) -> None:
    entry(site, "shouted:Shouted")
    assert isinstance(by_suffix(all_converters())[".sdrawkcab"], Isolated)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.sdrawkcab").write_text("ztrauq")

    async def go() -> list[str]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            await index.sync(tmp_path / "docs")
            return [hit.text for hit in await index.search("quartz")]

    assert tripod.run(go()) == ["quartz"]


@pytest.mark.parametrize(("value", "reason"), [("shouted:Nothing", "AttributeError"), ("absent:X", "ModuleNotFoundError")])
def test_a_package_that_cannot_be_used_is_named(site: Path, value: str, reason: str) -> None:
    entry(site, value)
    with pytest.raises(ConfigError, match=f"'sdrawkcab' of the package 'shouted' cannot be used: {reason}"):
        all_converters()


def test_the_later_converter_of_a_suffix_is_taken() -> None:
    class Mine(PlainText): ...

    mine = Mine()
    assert by_suffix([PlainText(), mine])[".txt"] is mine


def test_every_format_that_the_documentation_names_is_read() -> None:
    named = ".txt .md .rst .html .pdf .docx .pptx .xlsx .csv .json .jsonl .epub .rtf .eml .mbox .py .go .rs .java .js .c .ipynb"
    assert set(named.split()) <= by_suffix().keys()
