"""Real documents: good ones convert wholly, and bad ones fail one by one, with a reason."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from pathlib import Path

import pytest

import tripod
from tripod.documents import Document
from tripod.errors import ConversionError
from tripod.retrieval.converters.isolated import Isolated, Workers
from tripod.retrieval.converters.registry import by_suffix, suffix_of
from tripod.retrieval.index import Index
from tripod.retrieval.scan import scan
from tripod.retrieval.sync import SyncReport
from tripod.text.splitter import split

CONVERTERS = by_suffix()

# What these hold that no converter of ours should make text of.
UNREADABLE = {
    "markitdown/test_mskanji.csv": "not UTF-8",
    "pdfjs/REDHAT-1531897-0.pdf": "not a PDF that can be read",
    "pdfjs/empty.pdf": "none of its 1 pages holds text",
    "pdfjs/empty_protected.pdf": r"encrypted|none of its 1 pages",  # by AES, which pypdf reads only beside the package cryptography
    "pdfjs/poppler-85140-0.pdf": "not a PDF that can be read",
    "pdfjs/poppler-937-0-fuzzed.pdf": "not a PDF that can be read",
    "py-pdf/imagemagick-CCITTFaxDecode.pdf": "none of its 1 pages holds text",
    "py-pdf/libreoffice-writer-password.pdf": "encrypted",
    "tika/english.cp500.txt": "not UTF-8",
    "tika/russian.cp866.txt": "not UTF-8",
    "tika/testTXT_win-1252.txt": "not UTF-8",
    "tika/testWORD_truncated.docx": "not a DOCX that can be read",
}


@pytest.mark.parametrize("name", ["docs-md-fastapi", "docs-rst-flask", "docs-rst-peps", "docs-html-go"])
def test_documentation_converts_wholly_and_every_passage_is_where_it_says(shared_data: Path, name: str) -> None:
    found = scan(shared_data / name, suffixes=CONVERTERS)
    assert len(found.files) > 70
    titled = 0
    for file in found.files:
        document = CONVERTERS[suffix_of(file.source)].convert(file.path.read_bytes(), file.source)
        passages = split(document, max_tokens=200)
        for passage in passages:
            assert document.text[passage.start : passage.end] == passage.text
        titled += any(passage.section for passage in passages)
        if document.metadata["format"] != "html":
            assert document.text.encode(str(document.metadata["encoding"])) == file.path.read_bytes()
    # Some pages of Go have no heading at all.
    assert titled > 0.6 * len(found.files)


def test_every_document_of_other_libraries_tests_converts_or_says_why(shared_data: Path, tmp_path: Path) -> None:
    async def go() -> tuple[SyncReport, dict[str, Document]]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            report = await index.sync(shared_data / "documents")
            return report, {source: await index.document(source) for source in await index.sources()}

    report, documents = tripod.run(go())
    assert report.ignored == {"suffix .bin": 1}
    assert (report.added, report.seen) == (len(documents), sum(path.is_file() for path in (shared_data / "documents").rglob("*")) - 1)
    failures = dict(report.failed)
    assert failures.keys() == UNREADABLE.keys()
    for source, reason in UNREADABLE.items():
        assert re.search(reason, failures[source]), (source, failures[source])
    for document in documents.values():
        assert all(document.text[passage.start : passage.end] == passage.text for passage in split(document, max_tokens=200))


@pytest.mark.parametrize(
    "name",
    [
        *("markitdown/test.docx", "markitdown/test.pptx", "markitdown/test.xlsx", "markitdown/test.epub", "markitdown/test_notebook.ipynb"),
        *("tika/testRTFVarious.rtf", "py-pdf/pdflatex-outline.pdf", "markitdown/test.json", "markitdown/test_blog.html"),
    ],
)
def test_a_mutilated_document_converts_or_says_why(shared_data: Path, name: str) -> None:
    content, converter = (shared_data / "documents" / name).read_bytes(), CONVERTERS[suffix_of(name)]
    assert isinstance(converter, Isolated)
    generator = random.Random(name)
    with Workers() as workers:
        for _ in range(6):
            mutilated = bytearray(content)
            for _ in range(generator.randint(0, 20)):
                mutilated[generator.randrange(len(mutilated))] = generator.randrange(256)
            with suppress(ConversionError):
                document = workers.convert(converter, bytes(mutilated[: generator.randint(len(content) // 2, len(content))]), name)
                assert all(document.text[passage.start : passage.end] == passage.text for passage in split(document, max_tokens=200))
